"""From numbers per weight to one per channel: slices of members, then their reduction.

A channel holds a slice of every member of its group (the filters that write it, the
rows that read it, its scale and bias). `slices` sums each slice; a `Reduce` makes one
number of a channel's slices.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from cutjax.dims import incidence
from cutjax.graph import Graph, Group, Member
from cutjax.saliency.criterion import Scores

Slices = Float[np.ndarray, "members n"]
Reduce = Callable[[Slices, Slices], Float[np.ndarray, "n"]]


def total(sums: Slices, counts: Slices) -> Float[np.ndarray, "n"]:
    """The sum over all weights of the channel."""
    return sums.sum(0)


def mean(sums: Slices, counts: Slices) -> Float[np.ndarray, "n"]:
    """The mean over all weights of the channel: large members count for more."""
    return sums.sum(0) / np.maximum(counts.sum(0), 1)


def average(sums: Slices, counts: Slices) -> Float[np.ndarray, "n"]:
    """The mean over members of their means: each member counts alike."""
    return (sums / np.maximum(counts, 1)).mean(0)


def largest(sums: Slices, counts: Slices) -> Float[np.ndarray, "n"]:
    """The largest of the members' means."""
    return (sums / np.maximum(counts, 1)).max(0)


def norm(sums: Slices, counts: Slices) -> Float[np.ndarray, "n"]:
    """The Euclidean norm of the members' sums."""
    return np.sqrt((sums**2).sum(0))


def kernels(group: Group, graph: Graph) -> tuple[Member, ...]:
    """The members that are kernels (two axes or more); all, if none is."""
    found = [m for m in group.members if len(graph.shapes[m.path].shape) > 1]
    return tuple(found) or group.members


def everything(group: Group, graph: Graph) -> tuple[Member, ...]:
    """All members: kernels, biases, the scales and shifts of normalisations."""
    return group.members


def slices(
    values: Mapping[str, Any],
    group: Group,
    graph: Graph,
    of: Callable[[Group, Graph], tuple[Member, ...]] = everything,
) -> tuple[Slices, Slices]:
    """Sums of values over each channel's slice of each member.

    Args:
        values: per parameter, an array of its shape; what is not named has no value.
        group: the group.
        graph: its graph.
        of: which members count.

    Returns:
        `(sums, counts)`, f64[members, n]; `counts` are numbers of weights summed.
    """
    chosen = [m for m in of(group, graph) if m.path in values]
    sums, counts = np.zeros((2, max(len(chosen), 1), group.size))
    for row, member in enumerate(chosen):
        value = np.asarray(values[member.path], np.float64)
        rest = tuple(i for i in range(value.ndim) if i != member.axis)
        along = value.sum(axis=rest)
        at, channel = incidence(member.layout, group.name)
        np.add.at(sums[row], channel, along[at])
        np.add.at(counts[row], channel, value.size / value.shape[member.axis])
    return sums, counts


def per_channel(
    values: Mapping[str, Any],
    graph: Graph,
    reduce: Reduce = total,
    of: Callable[[Group, Graph], tuple[Member, ...]] = everything,
) -> Scores:
    """One number per channel of every free group.

    Args:
        values: per parameter, a number per weight.
        graph: the graph.
        reduce: `total`, `mean`, `average`, `largest` or `norm`.
        of: which members count: `everything` or `kernels`.

    Returns:
        Per group, f32[n].
    """
    return {
        g.name: reduce(*slices(values, g, graph, of)).astype(np.float32)
        for g in graph.free
    }
