"""Criteria that need no data: L1 of the weights, and chance."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from cutjax.dims import channels
from cutjax.graph import Graph
from cutjax.mirror import named_leaves
from cutjax.saliency.gradient import Scores
from cutjax.saliency.stream import Batch, Loss, check_finite
from cutjax.shrink import check_params


def l1(
    apply: Callable[..., Any] | None,
    params: Any,
    graph: Graph,
    losses: Mapping[str, Loss] | Iterable[str] | None = None,
    batches: Iterable[Batch] | None = None,
    *,
    progress: bool = True,
) -> dict[str, Scores]:
    """Mean absolute weight of a channel, over all kernels that write or read it.

    Args:
        apply: not used.
        params: the parameters.
        graph: their graph.
        losses: the tasks to give scores for; all, if not given. The scores are alike.
        batches: not used.
        progress: not used.

    Returns:
        Per task and group, f32[n].

    Reference:
        Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017.
    """
    check_params(params, graph)
    weights = named_leaves(params)
    scores: Scores = {}
    for group in graph.free:
        kernels = [m for m in group.members if len(graph.shapes[m.path].shape) > 1]
        total, number = np.zeros(group.size), np.zeros(group.size)
        for member in kernels or group.members:
            value = np.abs(np.asarray(weights[member.path], np.float64))
            rest = tuple(i for i in range(value.ndim) if i != member.axis)
            at = channels(member.layout, group.name)
            inside = at >= 0
            np.add.at(total, at[inside], value.sum(axis=rest)[inside])
            np.add.at(number, at[inside], value.size / value.shape[member.axis])
        scores[group.name] = (total / np.maximum(number, 1)).astype(np.float32)
    out = {
        task: scores for task in graph.check_tasks(tuple(losses) if losses else None)
    }
    check_finite(out, "l1")
    return out


def random(
    apply: Callable[..., Any] | None,
    params: Any,
    graph: Graph,
    losses: Mapping[str, Loss] | Iterable[str] | None = None,
    batches: Iterable[Batch] | None = None,
    *,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Scores]:
    """Chance, the control of every other criterion; alike for all tasks.

    Args:
        apply: not used.
        params: not used.
        graph: the graph.
        losses: the tasks to give scores for; all, if not given.
        batches: not used.
        seed: of the draw.
        progress: not used.

    Returns:
        Per task and group, f32[n], uniform on (0, 1).
    """
    rng = np.random.default_rng(seed)
    scores = {g.name: _uniform(rng, g.size) for g in graph.free}
    return {
        task: scores for task in graph.check_tasks(tuple(losses) if losses else None)
    }


def _uniform(rng: np.random.Generator, n: int) -> Float[np.ndarray, "_"]:
    return rng.uniform(0.01, 1.0, n).astype(np.float32)
