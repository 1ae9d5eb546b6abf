"""All criteria by name, and what is needed to write one more.

Say `cj.saliency(..., criterion=cj.criteria.joint(damping=1e-2))` for one, `(cj.taylor,
cj.criteria.snip(reduce=cj.criteria.members.average))` for several in one pass, or
`ALL`.
"""

from cutjax.saliency import (
    ALL as ALL,
    bn_scale as bn_scale,
    cosprune as cosprune,
    cut as cut,
    fisher as fisher,
    fpgm as fpgm,
    gram as gram,
    grasp as grasp,
    hessian as hessian,
    joint as joint,
    l1 as l1,
    l2 as l2,
    lamp as lamp,
    linf as linf,
    mean_activation as mean_activation,
    members as members,
    mutual_information as mutual_information,
    random as random,
    reconstruction as reconstruction,
    snip as snip,
    taylor as taylor,
    taylor_signed as taylor_signed,
    taylor_squared as taylor_squared,
    wanda as wanda,
    zero_rate as zero_rate,
)
from cutjax.saliency.criterion import (
    Criterion as Criterion,
    Measure as Measure,
    Problem as Problem,
    Sums as Sums,
)
from cutjax.saliency.family import criterion as criterion
from cutjax.saliency.gather import finish as finish, gather as gather
from cutjax.saliency.seen import Seen as Seen
