"""All criteria by name, and what is needed to write one more.

Say `cj.saliency(..., criterion=cj.criteria.joint(damping=1e-2))` for one, `(cj.taylor,
cj.criteria.snip(reduce=cj.criteria.members.average))` for several in one pass, or
`ALL`.
"""

from cutjax.saliency import (
    bn_scale,
    cosprune,
    cut,
    fisher,
    fpgm,
    gram,
    grasp,
    hessian,
    joint,
    l1,
    l2,
    lamp,
    linf,
    mean_activation,
    members as members,
    mutual_information,
    random,
    reconstruction,
    snip,
    taylor,
    taylor_signed,
    taylor_squared,
    wanda,
    zero_rate,
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

ALL = {
    f.name: f
    for f in (
        *(taylor, taylor_squared, taylor_signed, fisher, gram, hessian, joint),
        reconstruction,
        *(cut, snip, grasp, cosprune),
        *(l1, l2, linf, bn_scale, lamp, fpgm),
        *(mean_activation, zero_rate, wanda, mutual_information, random),
    )
}
"""Every criterion by name."""
