"""cutjax: pruning as a JAX transformation.

`trace` finds the channel groups of any function, `saliency` scores them per task,
`plan` solves for a budget, `cut` returns the smaller function and its parameters.
"""

from cutjax.graph import Graph as Graph, Group as Group
from cutjax.cost import Cost as Cost
from cutjax.dims import Keep as Keep
from cutjax.gate import gate as gate
from cutjax.shrink import (
    cut as cut,
    cut_params as cut_params,
    mask as mask,
    select as select,
    shrink as shrink,
)
from cutjax.trace import trace as trace
from cutjax import fuse as fuse
from cutjax.allocate import greedy as greedy, uniform as uniform
from cutjax.budget import Budget as Budget
from cutjax.plan import plan as plan
from cutjax.saliency import (
    fisher as fisher,
    joint as joint,
    l1 as l1,
    random as random,
    saliency as saliency,
    taylor as taylor,
)
from cutjax.recover import (
    compensate as compensate,
    finetune as finetune,
    recalibrate as recalibrate,
    teach as teach,
)
