"""Flax NNX: a module as a pure function, and a smaller module of the same classes.

`trace(model, x)` gives the graph, `cut(model, graph, keep)` the smaller module. Between
them stands nothing but `split(model)`: `(apply, params)`, the form in which every other
function of cutjax (`saliency`, `compensate`, `cut(..., tasks=...)`) takes a model.
"""

from cutjax.nnx.compact import cut
from cutjax.nnx.layers import attend
from cutjax.nnx.state import split, trace

__all__ = ["attend", "cut", "split", "trace"]
