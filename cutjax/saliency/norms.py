"""Criteria that look at the size of weights only: L1, L2, L-infinity, LAMP, scale."""

import fnmatch

import numpy as np
from jaxtyping import Float

from cutjax.dims import incidence
from cutjax.errors import KeepError
from cutjax.graph import Graph, Group
from cutjax.mirror import named_leaves
from cutjax.saliency.criterion import Criterion, Problem, Scores, double
from cutjax.saliency.family import criterion
from cutjax.saliency.members import Reduce, kernels, mean, per_channel, total
from cutjax.shrink import check_params


def weights_of(problem: Problem) -> dict[str, np.ndarray]:
    """The parameters by path, checked against the graph."""
    check_params(problem.params, problem.graph)
    return {p: double(v) for p, v in named_leaves(problem.params).items()}


@criterion
def l1(reduce: Reduce = mean) -> Criterion:
    """Mean absolute weight of a channel, over all kernels that write or read it.

    Args:
        reduce: from a channel's slices to one number.

    Returns:
        A criterion; the same for all tasks.

    Reference:
        Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017.
    """

    def scores(problem: Problem, sums: None) -> dict[str, Scores]:
        sizes = {p: np.abs(v) for p, v in weights_of(problem).items()}
        return problem.alike(per_channel(sizes, problem.graph, reduce, kernels))

    return Criterion("l1", scores)


@criterion
def l2(reduce: Reduce = mean) -> Criterion:
    """Root mean square weight of a channel, over all kernels that write or read it.

    Args:
        reduce: from a channel's slices (of squares) to one number, whose root is taken.

    Returns:
        A criterion; the same for all tasks.

    Reference:
        He et al., Soft Filter Pruning, IJCAI 2018, with p = 2.
    """

    def scores(problem: Problem, sums: None) -> dict[str, Scores]:
        found = _squares(problem, reduce)
        return problem.alike({g: np.sqrt(v) for g, v in found.items()})

    return Criterion("l2", scores)


def _squares(problem: Problem, reduce: Reduce) -> Scores:
    squares = {p: np.abs(v) ** 2 for p, v in weights_of(problem).items()}
    return per_channel(squares, problem.graph, reduce, kernels)


@criterion
def linf() -> Criterion:
    """Largest absolute weight of a channel, over all kernels that write or read it.

    Returns:
        A criterion; the same for all tasks.

    Reference:
        The limit of the p-norms of He et al., Soft Filter Pruning, IJCAI 2018.
    """

    def scores(problem: Problem, sums: None) -> dict[str, Scores]:
        weights, graph = weights_of(problem), problem.graph
        return problem.alike({g.name: _most(weights, g, graph) for g in graph.free})

    return Criterion("linf", scores)


def _most(weights, group: Group, graph: Graph) -> Float[np.ndarray, "n"]:
    out = np.zeros(group.size)
    for member in kernels(group, graph):
        value = np.abs(weights[member.path])
        rest = tuple(i for i in range(value.ndim) if i != member.axis)
        at, channel = incidence(member.layout, group.name)
        np.maximum.at(out, channel, value.max(axis=rest, initial=0.0)[at])
    return out.astype(np.float32)


@criterion
def lamp() -> Criterion:
    """A channel's squared weights over those of all channels that are no smaller.

    Returns:
        A criterion; the largest channel of every group scores 1, so that layers are
        comparable. The same for all tasks.

    Reference:
        Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021,
        eq. 2, with channels of a group for weights of a layer.
    """

    def scores(problem: Problem, sums: None) -> dict[str, Scores]:
        found = _squares(problem, total)
        return problem.alike({g: _tail_share(v) for g, v in found.items()})

    return Criterion("lamp", scores)


def _tail_share(squares: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    order = np.argsort(squares, kind="stable")
    rising = squares[order].astype(np.float64)
    tail = np.cumsum(rising[::-1])[::-1]
    out = np.zeros(len(squares), np.float32)
    out[order] = rising / np.maximum(tail, 1e-30)
    return out


@criterion
def bn_scale(pattern: str = "*scale") -> Criterion:
    """Absolute scale of the normalisations that a channel passes.

    Args:
        pattern: what the paths of scales match: `*scale` in Flax and Haiku.

    Returns:
        A criterion; the mean over the scales of a group, the same for all tasks. Groups
        without one are an error: nothing could be said of them.

    Reference:
        Liu et al., Network Slimming, ICCV 2017.
    """

    def scales(group: Group, graph: Graph):
        found = tuple(
            m
            for m in group.members
            if fnmatch.fnmatch(m.path, pattern) and len(graph.shapes[m.path].shape) == 1
        )
        if not found:
            paths = ", ".join(m.path for m in group.members[:4])
            raise KeepError(
                f"bn_scale: group {group.name!r} has no vector that matches "
                f"{pattern!r} among {paths}; give the pattern of your scales, "
                "bn_scale(pattern=...), or use l1 for nets without normalisation"
            )
        return found

    def scores(problem: Problem, sums: None) -> dict[str, Scores]:
        sizes = {p: np.abs(v) for p, v in weights_of(problem).items()}
        return problem.alike(per_channel(sizes, problem.graph, mean, scales))

    return Criterion("bn_scale", scores)
