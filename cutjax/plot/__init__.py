"""Pictures of graphs, scores and plans. Every function returns a matplotlib figure.

`figure.savefig(path)` keeps one; a notebook after `%matplotlib inline` shows it.
"""

from cutjax.plot.bars import (
    accuracies as accuracies,
    claims as claims,
    widths as widths,
)
from cutjax.plot.merge import matches as matches
from cutjax.plot.network import net as net
from cutjax.plot.ranks import scores as scores
from cutjax.plot.recovery import recovery as recovery
from cutjax.plot.subsets import subset_costs as subset_costs
from cutjax.plot.watershed import agreement as agreement
