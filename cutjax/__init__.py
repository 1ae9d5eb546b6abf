"""cutjax: pruning as a JAX transformation.

`trace` finds the channel groups of any function, `saliency` scores them per task,
`plan` solves for a budget, `cut` returns the smaller function and its parameters.
"""

from cutjax import fuse as fuse
from cutjax.allocate import greedy as greedy
from cutjax.allocate import uniform as uniform
from cutjax.budget import Budget as Budget
from cutjax.cost import Cost as Cost
from cutjax.dims import Keep as Keep
from cutjax.gate import gate as gate
from cutjax.graph import Graph as Graph
from cutjax.graph import Group as Group
from cutjax.plan import plan as plan
from cutjax.recover import (
    compensate as compensate,
)
from cutjax.recover import (
    finetune as finetune,
)
from cutjax.recover import (
    recalibrate as recalibrate,
)
from cutjax.recover import (
    teach as teach,
)
from cutjax.saliency import (
    fisher as fisher,
)
from cutjax.saliency import (
    joint as joint,
)
from cutjax.saliency import (
    l1 as l1,
)
from cutjax.saliency import (
    random as random,
)
from cutjax.saliency import (
    saliency as saliency,
)
from cutjax.saliency import (
    taylor as taylor,
)
from cutjax.shrink import (
    cut as cut,
)
from cutjax.shrink import (
    cut_params as cut_params,
)
from cutjax.shrink import (
    mask as mask,
)
from cutjax.shrink import (
    select as select,
)
from cutjax.shrink import (
    shrink as shrink,
)
from cutjax.trace import trace as trace
