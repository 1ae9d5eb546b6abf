"""Making the scores of different groups comparable, before groups compete for a budget.

Each is `f(scores, graph) -> scores` for `plan(..., normalize=f)`. None of them changes
the order of channels within a group; they change what one group is worth beside
another. Scores in units of the loss (`taylor`, `fisher`, `joint`) are comparable as
they are; sizes of weights are not.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from cutjax.allocate.meter import channel_savings
from cutjax.graph import Graph
from cutjax.isomorphic import classes

Scores = Mapping[str, Float[np.ndarray, "_"]]
Normalize = Callable[[Scores, Graph], dict[str, np.ndarray]]


def none(scores: Scores, graph: Graph) -> dict[str, np.ndarray]:
    """Scores as they are."""
    return dict(scores)


def mean(scores: Scores, graph: Graph) -> dict[str, np.ndarray]:
    """Divided by the group's mean absolute score: groups are worth their size."""
    return _divided(scores, lambda v: np.abs(v).mean())


def largest(scores: Scores, graph: Graph) -> dict[str, np.ndarray]:
    """Divided by the group's largest absolute score."""
    return _divided(scores, lambda v: np.abs(v).max())


def total(scores: Scores, graph: Graph) -> dict[str, np.ndarray]:
    """Divided by the group's sum of absolute scores: groups are worth the same."""
    return _divided(scores, lambda v: np.abs(v).sum())


def length(scores: Scores, graph: Graph) -> dict[str, np.ndarray]:
    """Divided by the Euclidean norm of the group's scores.

    Reference:
        Molchanov et al., ICLR 2017, section 2.2 (layer-wise l2 normalisation).
    """
    return _divided(scores, lambda v: np.sqrt((v**2).sum()))


def standard(scores: Scores, graph: Graph) -> dict[str, np.ndarray]:
    """Standard scores: the group's mean taken off, divided by its deviation.

    A group whose scores are all alike gets zeros; scores may be negative.
    """
    out = {}
    for name, values in scores.items():
        v = np.asarray(values, np.float64)
        spread = v.std()
        flat = (v - v.mean()) / spread if spread > 0 else np.zeros_like(v)
        out[name] = flat.astype(np.float32)
    return out


def isomorphic(scores: Scores, graph: Graph) -> dict[str, np.ndarray]:
    """Divided by the mean absolute score of all groups of the same structure.

    Reference:
        Fang et al., Isomorphic Pruning for Vision Models, ECCV 2024, as a scale instead
        of separate rankings (for these see `allocate=isomorphic`).
    """
    out = dict(scores)
    for names in classes(graph):
        pool = np.concatenate([np.asarray(scores[n], np.float64) for n in names])
        scale = np.abs(pool).mean()
        out.update({n: _over(scores[n], scale) for n in names})
    return out


def per_cost(resource: str = "params") -> Normalize:
    """Divided by what one channel of the full model costs.

    For allocations that look at scores only (`threshold`); `greedy` divides by the
    marginal cost itself.

    Args:
        resource: `params`, `flops` or `bytes`.

    Returns:
        A normalisation.
    """

    def normalize(scores: Scores, graph: Graph) -> dict[str, np.ndarray]:
        costs = channel_savings(graph, graph.tasks, resource)
        # A group of one channel has no other to be weighed against.
        return {
            name: _over(values, float(costs[name]) if graph[name].size > 1 else 0.0)
            for name, values in scores.items()
        }

    return normalize


def _divided(
    scores: Scores, scale: Callable[[np.ndarray], np.floating]
) -> dict[str, np.ndarray]:
    return {
        name: _over(values, float(scale(np.asarray(values, np.float64))))
        for name, values in scores.items()
    }


def _over(values: np.ndarray, scale: float) -> np.ndarray:
    """Divided by a scale; as it is where the scale is zero."""
    return (np.asarray(values, np.float64) / (scale or 1.0)).astype(np.float32)
