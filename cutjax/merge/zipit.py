"""ZipIt!: channels that do alike become one, within networks as well as across.

The two clusters of channels that correlate most are merged, again and again, until as
many are left as one network is wide.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cutjax.errors import DataError, KeepError, suggest
from cutjax.given import several
from cutjax.graph import Graph, Group
from cutjax.merge.clusters import greedy
from cutjax.merge.sharing import Sharing, until


class Zipped(NamedTuple):
    """What was merged, by group.

    `correlations`: of the two clusters at each merge, in order. `within`: how many
    channels each network lost to others of its own.
    """

    correlations: dict[str, Float[np.ndarray, "_"]]
    within: dict[str, dict[str, int]]


def zipit(
    graph: Graph,
    correlations: Mapping[str, Float[np.ndarray, "tn tn"]],
    names: Sequence[str],
    *,
    width: float | Mapping[str, int] = 1.0,
    within: float | bool = 1.0,
    repeat: float = 1.0,
    shared: Collection[str] | str | None = None,
) -> tuple[Sharing, Zipped]:
    """Merge the channels that correlate most, greedily.

    Clusters compare by the mean correlation of their channels; ties go to the first.
    Channels that constants tell apart (`Group.ordered`) meet only as they stand.

    Args:
        graph: of all networks.
        correlations: by group, of the channels of all networks in the order of `names`:
            see `merge.correlations`.
        names: the networks.
        width: how many shared channels are left: a share of each group, or a number by
            group; of groups without a number all.
        within: the paper's beta, how many of the merges may be of two channels of one
            network, which all networks may have equally many of. 1 or True: any number;
            0 or False: none, so that a shared channel has one of each network at most.
        repeat: the paper's alpha: each merge multiplies the positive correlations of
            what it makes by this, against long chains.
        shared: the groups to zip; all others stay with their networks. All free groups
            with correlations, if not given.

    Returns:
        `(sharing, info)`; a cluster stands where its first channel stood, if that is
        still free, else at the next place that is.

    Raises:
        KeepError: an unknown or pinned group, one without correlations, a width that
            cannot be, or a network named twice.
        DataError: correlations of a wrong shape, or not finite.

    Example:
        >>> import jax.numpy as jnp, numpy as np, cutjax as cj
        >>> apply = lambda w, x: x @ w["a"] @ w["b"]
        >>> w = {"a": jnp.ones((1, 2)), "b": jnp.ones((2, 1))}
        >>> graph = cj.trace(apply, w, jnp.ones((1, 1)))
        >>> alike = np.eye(4) + 0.9 * np.eye(4)[[3, 2, 1, 0]]
        >>> sharing, info = zipit(graph, {"a:1": alike}, ["one", "two"])
        >>> {name: slots.tolist() for name, slots in sharing["a:1"].items()}
        {'one': [0, 1], 'two': [1, 0]}

    Reference:
        Stoica et al., ZipIt! Merging Models from Different Tasks without Training, ICLR
        2024, sections 4.1 and 4.3; there clusters compare by their least correlation.
    """
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise KeepError(f"names hold {twice[0]!r} twice; each network has its own")
    if not (names and 0 <= within <= 1 and 0 < repeat <= 1):
        raise KeepError(
            f"zipit of networks {list(names)} with within={within}, repeat={repeat}: "
            "name one at least, within in 0 ... 1, repeat in (0, 1]"
        )
    if shared is None:
        shared = [g.name for g in graph.free if g.name in correlations]
    widths = _widths([graph[name] for name in several(shared)], width)
    sharing, info = {}, Zipped({}, {})
    for name, left in widths.items():
        group, n = graph[name], graph[name].size
        given = _checked(correlations, group, len(names))
        if group.ordered is None:
            roots, heights = greedy(given, n, left, float(within), repeat)
        else:
            roots, heights = _in_order(given, group, left)
        sharing[name] = dict(zip(names, _places(roots, n), strict=True))
        lost = {t: n - np.unique(slots).size for t, slots in sharing[name].items()}
        info.correlations[name], info.within[name] = heights, lost
    return until(graph, names, sharing, shared), info


def _widths(
    groups: Sequence[Group], width: float | Mapping[str, int]
) -> dict[str, int]:
    sizes = {group.name: group.size for group in groups}
    for group in groups:
        if group.pinned is not None:
            raise KeepError(f"{group.name!r} is pinned: {group.pinned}")
    if not isinstance(width, Mapping):
        if not 0 < width <= 1:
            raise KeepError(f"width={width} is no share; 0 < width <= 1")
        return {name: max(1, round(width * n)) for name, n in sizes.items()}
    for name, number in width.items():
        if name not in sizes:
            raise KeepError(f"width of {name!r}, not zipped; {suggest(name, sizes)}")
        if not 1 <= number <= sizes[name]:
            raise KeepError(f"width of {name!r} is {number}, not 1 ... {sizes[name]}")
    return {name: int(width.get(name, n)) for name, n in sizes.items()}


def _checked(
    correlations: Mapping[str, np.ndarray], group: Group, networks: int
) -> Float[np.ndarray, "m m"]:
    if group.name not in correlations:
        raise KeepError(f"no correlations of {group.name!r}; leave it out of `shared`")
    given, m = np.asarray(correlations[group.name], np.float64), networks * group.size
    what = f"correlations[{group.name!r}] of {networks} networks"
    if given.shape != (m, m):
        raise DataError(f"{what} are {list(given.shape)}, not {[m, m]}")
    if not np.isfinite(given).all():
        raise DataError(f"{what} are not finite; channels that do not vary have zeros")
    return (given + given.T) / 2


def _in_order(
    similarity: Float[np.ndarray, "m m"], group: Group, left: int
) -> tuple[Int[np.ndarray, "m"], Float[np.ndarray, "_"]]:
    """Every channel with those at its place; the correlation at each merge."""
    if left != group.size:
        raise KeepError(
            f"width of {group.name!r} is {left}, but a constant tells its "
            f"{group.size} channels apart at {group.ordered}: these cannot meet; leave "
            "it out of `shared`"
        )
    at = np.arange(len(similarity))
    return at % group.size, similarity[at % group.size, at][group.size :]


def _places(roots: Int[np.ndarray, "m"], n: int) -> Int[np.ndarray, "t n"]:
    """Each cluster where its first channel stood, or at the next free place."""
    place, free = np.zeros(len(roots), int), np.ones(n, bool)
    for root in np.unique(roots):
        left = np.flatnonzero(free)
        place[root] = left[np.searchsorted(left, root % n) % left.size]
        free[place[root]] = False
    return place[roots].reshape(-1, n)
