"""Where the channels of a network go in the merged one, in axes and in arrays."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped

from cutjax.dims import Axis, kept, leaves
from cutjax.graph import Graph
from cutjax.merge.permute import places
from cutjax.merge.sharing import OWN, Sharing

Slots = Mapping[str, Int[np.ndarray, "_"]]
"""By group: the shared channel of each channel, or OWN, or DROPPED."""


def slots_of(sharing: Sharing, network: str) -> Slots:
    """Those of one network."""
    return {group: np.asarray(found[network]) for group, found in sharing.items()}


def shared_keep(graph: Graph, sharing: Sharing) -> dict[str, Bool[np.ndarray, "_"]]:
    """Which channels of the architecture are shared ones."""
    keep = {}
    for name, found in sharing.items():
        keep[name] = np.zeros(graph[name].size, bool)
        for slots in map(np.asarray, found.values()):
            keep[name][slots[slots >= 0]] = True
    return keep


def own_keep(
    graph: Graph, sharing: Sharing, network: str
) -> dict[str, Bool[np.ndarray, "_"]]:
    """Which of a network's channels stay its own; of pinned groups all do."""
    slots = slots_of(sharing, network)
    return {
        g.name: slots[g.name] == OWN if g.name in slots else np.zeros(g.size, bool)
        for g in graph.free
    }


def shares(graph: Graph, slots: Slots) -> bool:
    """Whether a network has channels among the shared ones."""
    return any(g.name not in slots or (slots[g.name] >= 0).any() for g in graph.free)


def one_to_one(to: Int[np.ndarray, "_"], common: Bool[np.ndarray, "_"]) -> bool:
    """Whether each shared channel is one channel of a network.

    Args:
        to: where the network's channels go.
        common: which channels are shared ones.
    """
    return np.array_equal(np.sort(to[to >= 0]), np.flatnonzero(common))


def beside(axis: Axis, free: Collection[str]) -> Bool[np.ndarray, "_"]:
    """The positions of an axis that are of none of some groups."""
    found = (leaf for leaf in leaves(axis) if leaf.name in free)
    return kept(axis, {leaf.name: np.zeros(leaf.size, bool) for leaf in found})


def summed(
    leaf: Shaped[np.ndarray, "..."],
    axes: Sequence[Axis],
    slots: Slots,
    along: Iterable[int],
) -> Any:
    """An array with the channels of each shared one added up.

    Args:
        leaf: the array.
        axes: its axes.
        slots: of its network.
        along: which of the axes; the others stay as they are.

    Returns:
        An array of the same shape; zero where nothing goes.
    """
    for i in along:
        to = places(axes[i], slots)
        if np.array_equal(to, np.arange(to.size)):
            continue
        padded = np.concatenate([leaf, np.zeros_like(np.take(leaf, [0], i))], i)
        parts = [np.take(padded, index, i) for index in _rounds(to)]
        leaf = np.sum(parts, 0)
    return leaf


def _rounds(to: Int[np.ndarray, "n"]) -> list[Int[np.ndarray, "n"]]:
    """Whom each place adds, one after another; n where there is nobody more."""
    from_, n = np.flatnonzero(to >= 0), to.size
    order = from_[np.argsort(to[from_], kind="stable")]
    place = to[order]
    rank = np.arange(order.size) - np.searchsorted(place, place)
    rounds = []
    for r in range(int(rank.max(initial=0)) + 1):
        index = np.full(n, n)
        index[place[rank == r]] = order[rank == r]
        rounds.append(index)
    return rounds
