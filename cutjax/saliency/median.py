"""Redundancy by distance: a channel near to all others can be replaced by them."""

import numpy as np
from jaxtyping import Float

from cutjax.dims import incidence
from cutjax.graph import Graph, Group
from cutjax.saliency.criterion import Criterion, Problem, Scores
from cutjax.saliency.family import criterion
from cutjax.saliency.members import kernels
from cutjax.saliency.norms import weights_of


@criterion
def fpgm() -> Criterion:
    """Sum of distances of a channel's kernel slices to those of all others.

    Returns:
        A criterion; lowest near the geometric median of the group's channels. The same
        for all tasks.

    Reference:
        He et al., Filter Pruning via Geometric Median, CVPR 2019, eq. 6; slices of all
        kernels of the group laid end to end.
    """

    def scores(problem: Problem, sums: None) -> dict[str, Scores]:
        weights, graph = weights_of(problem), problem.graph
        return problem.alike(
            {g.name: _distances(weights, g, graph) for g in graph.free}
        )

    return Criterion("fpgm", scores)


def _distances(weights, group: Group, graph: Graph) -> Float[np.ndarray, "n"]:
    squared = np.zeros((group.size, group.size))
    for member in kernels(group, graph):
        value = np.moveaxis(weights[member.path], member.axis, 0)
        at, channel = incidence(member.layout, group.name)
        order = np.argsort(channel, kind="stable")
        # Each channel holds as many positions as any other.
        flat = value[at[order]].reshape(group.size, -1)
        product = (flat @ flat.T.conj()).real
        size = np.diag(product)
        squared += np.maximum(size[:, None] + size - 2 * product, 0.0)
    np.fill_diagonal(squared, 0.0)
    return np.sqrt(squared).sum(1).astype(np.float32)
