"""Published methods, each a few lines over the parts.

`ONE_SHOT` holds those that score once and plan once, as values; the others are
functions. `cj.recipes.prune(cj.recipes.taylor(), apply, params, graph, ...)`.
"""

from cutjax.recipes.control import reinitialise as reinitialise
from cutjax.recipes.one_shot import (
    ONE_SHOT as ONE_SHOT,
    Recipe as Recipe,
    cosprune as cosprune,
    cut as cut,
    default as default,
    disparse as disparse,
    lth as lth,
    planned as planned,
    prune as prune,
    random as random,
    snip as snip,
    taylor as taylor,
    uniform as uniform,
)
from cutjax.recipes.pagcp import (
    Bound as Bound,
    pagcp as pagcp,
    recheck as recheck,
    task_losses_at as task_losses_at,
)
from cutjax.recipes.rounds import cosprune_rounds as cosprune_rounds, imp as imp
from cutjax.recipes.weights import (
    cut_weights as cut_weights,
    disparse_dynamic as disparse_dynamic,
    disparse_weights as disparse_weights,
    lth_weights as lth_weights,
    random_weights as random_weights,
    snip_weights as snip_weights,
)
