"""Many networks into one: alignment, shared and own channels, merged parameters."""

from cutjax.merge.align import align as align, align_all as align_all
from cutjax.merge.buffers import unique_bytes as unique_bytes
from cutjax.merge.cabs import cabs as cabs, cabs_masks as cabs_masks
from cutjax.merge.correlation import correlations as correlations
from cutjax.merge.evidence import (
    by_information as by_information,
    by_scores as by_scores,
)
from cutjax.merge.informed import information as information
from cutjax.merge.inputs import each_its_input as each_its_input
from cutjax.merge.merged import (
    Merged as Merged,
    average as average,
    train_apply as train_apply,
)
from cutjax.merge.network import Network as Network
from cutjax.merge.pam import exclusive_groups as exclusive_groups, pam as pam
from cutjax.merge.permute import permute as permute
from cutjax.merge.refit import (
    least_squares as least_squares,
    mtz as mtz,
    repair as repair,
)
from cutjax.merge.regroup import (
    pam_sharing as pam_sharing,
    regroup as regroup,
    types as types,
)
from cutjax.merge.scales import best_scale as best_scale
from cutjax.merge.sharing import (
    DROPPED as DROPPED,
    OWN as OWN,
    Sharing as Sharing,
    from_permutations as from_permutations,
    own_widths as own_widths,
    shared_widths as shared_widths,
    until as until,
)
from cutjax.merge.statistics import own_statistics as own_statistics
from cutjax.merge.subsets import (
    Programs as Programs,
    Subset as Subset,
    programs as programs,
)
from cutjax.merge.tied import tied as tied, tied_train_apply as tied_train_apply
from cutjax.merge.ties import ties as ties
from cutjax.merge.vectors import arithmetic as arithmetic, vectors as vectors
from cutjax.merge.whole import whole_groups as whole_groups
from cutjax.merge.zipit import zipit as zipit
