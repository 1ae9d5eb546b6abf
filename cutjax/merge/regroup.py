"""PAM's types of channels: for all tasks, for one of them alone, or for none.

S_t are the channels irrelevant to task t: those whose level (see `evidence`) is at most
alpha. What is in all S_t is dropped; what is in all but one is exclusive to that task;
the rest is shared. A channel here is a cluster of aligned ones, one of each network.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from cutjax.errors import DataError, KeepError
from cutjax.graph import Graph
from cutjax.merge.alphas import solved
from cutjax.merge.permute import Permutation
from cutjax.merge.sharing import DROPPED, OWN, Sharing, check, from_permutations

SHARED = -3

Types = dict[str, Int[np.ndarray, "n"]]
"""By group: SHARED, or DROPPED, or the number of the only task that needs it."""


class Regrouped(NamedTuple):
    """By group: alpha, how many channels are of each type (exclusive: by network).

    `rescued`: the channels that were irrelevant, yet the last that a network had.
    """

    alpha: dict[str, float]
    shared: dict[str, int]
    exclusive: dict[str, dict[str, int]]
    dropped: dict[str, int]
    rescued: dict[str, list[int]]


def types(member: Bool[np.ndarray, "t n"]) -> Int[np.ndarray, "n"]:
    """The type of each channel.

    Args:
        member: which channels are irrelevant to which tasks.

    Returns:
        SHARED, DROPPED, or the number of the task that it is exclusive to.

    Example:
        >>> S = np.array([[True, True, False, False], [True, False, True, False]])
        >>> types(S).tolist()  # dropped, for task 1, for task 0, shared
        [-2, 1, 0, -3]
    """
    outside = (~member).sum(0)
    only = np.where(outside == 1, (~member).argmax(0), SHARED)
    return np.where(outside == 0, DROPPED, only)


def regroup(
    levels: Mapping[str, Float[np.ndarray, "t _"]],
    names: Sequence[str],
    *,
    alpha: float | None = None,
    shared: float | Mapping[str, int] | None = None,
    exclusive: float | Mapping[str, int] | None = None,
) -> tuple[Types, Regrouped]:
    """Type the channels of groups, by an alpha or by how many are wanted of a type.

    An alpha that is solved for lies in the middle of the widest range of those that
    give the number. No network loses all channels of a group: its last one is kept,
    that of the highest level, shared if it is exclusive to another.

    Args:
        levels: by group, see `by_information` and `by_scores`.
        names: the networks, one per task, in the order of `levels`.
        alpha: the threshold.
        shared: at least so many channels stay shared, as close as levels can tell: a
            share of all groups, with one alpha, or a number by group, with an alpha
            each; groups without a number stay shared.
        exclusive: likewise, at least so many are exclusive to some network.

    Returns:
        `(types, info)`, types by group.

    Raises:
        KeepError: not one of the three, or NaN; more channels than a group has; unknown
            groups.
        BudgetError: no alpha gives so many.
        DataError: levels of a wrong shape, or NaN.

    Example:
        >>> levels = {"g": np.array([[0.1, 0.1, 0.9, 0.9], [0.1, 0.9, 0.2, 0.9]])}
        >>> found, info = regroup(levels, ["one", "two"], shared=0.25)
        >>> found["g"].tolist(), round(info.alpha["g"], 2)
        ([-2, 1, 0, -3], 0.55)

    Reference:
        He et al., Pruning-Aware Merging, KDD 2021, section 4, where alpha is given and
        the channels of networks are not aligned.
    """
    given = {g: _checked(g, found, len(names)) for g, found in levels.items()}
    if sum(w is not None for w in (alpha, shared, exclusive)) != 1:
        raise KeepError("pass one of alpha, shared and exclusive")
    if not given:
        raise KeepError("no group to regroup: none of the networks can be cut")
    if alpha is not None:
        if alpha != alpha:
            raise KeepError("alpha is NaN: give the level up to which channels go")
        alphas = dict.fromkeys(given, alpha)
    elif shared is not None:
        alphas = solved(given, shared, lambda c: c.shared, "shared")
    else:
        alphas = solved(given, exclusive or 0.0, lambda c: c.exclusive, "exclusive")
    out: Types = {}
    info = Regrouped(alphas, {}, {}, {}, {})
    for group, found in given.items():
        kinds, info.rescued[group] = _rescued(types(found <= alphas[group]), found)
        out[group] = kinds
        own = {name: int((kinds == t).sum()) for t, name in enumerate(names)}
        info.shared[group], info.exclusive[group] = int((kinds == SHARED).sum()), own
        info.dropped[group] = int((kinds == DROPPED).sum())
    return out, info


def _checked(
    group: str, levels: Float[np.ndarray, "_ _"], tasks: int
) -> Float[np.ndarray, "t n"]:
    if len(levels) != tasks or not tasks or np.isnan(levels).any():
        raise DataError(
            f"levels[{group!r}] of {tasks} tasks are {list(levels.shape)}, or NaN"
        )
    return np.asarray(levels, np.float64)


def _rescued(
    kinds: Int[np.ndarray, "n"], levels: Float[np.ndarray, "t n"]
) -> tuple[Int[np.ndarray, "n"], list[int]]:
    """Types that leave each task a channel, and the channels that changed for it."""
    out = kinds.copy()
    poor = [t for t in range(len(levels)) if not np.isin(kinds, (SHARED, t)).any()]
    best = levels[poor].argmax(1)
    for t, channel in zip(poor, best, strict=True):
        out[channel] = t if out[channel] == DROPPED else SHARED
    return out, sorted({*best.tolist()})


def pam_sharing(
    graph: Graph,
    names: Sequence[str],
    permutations: Mapping[str, Permutation],
    types: Mapping[str, Int[np.ndarray, "_"]],
) -> Sharing:
    """Where the channels of typed clusters go.

    Args:
        graph: of all networks.
        names: the networks, in the order of types.
        permutations: by network: its channel `permutation[group][i]` is in cluster `i`.
        types: by group; groups that are not named are shared.

    Returns:
        Shared clusters go to their position; of exclusive ones the network's own
        channel is OWN, the others are DROPPED, as all of a dropped cluster are.

    Raises:
        KeepError: permutations or types that do not fit, pinned groups not shared.

    Example:
        >>> import jax.numpy as jnp, cutjax as cj
        >>> apply = lambda w, x: x @ w["a"] @ w["b"]
        >>> w = {"a": jnp.ones((1, 3)), "b": jnp.ones((3, 1))}
        >>> graph = cj.trace(apply, w, jnp.ones((1, 1)))
        >>> orders = {"two": {"a:1": np.array([1, 2, 0])}}
        >>> kinds = {"a:1": np.array([SHARED, 1, DROPPED])}
        >>> found = pam_sharing(graph, ["one", "two"], orders, kinds)["a:1"]
        >>> {name: slots.tolist() for name, slots in found.items()}
        {'one': [0, -2, -2], 'two': [-2, 0, -1]}
    """
    out = from_permutations(graph, {t: permutations.get(t, {}) for t in names})
    for group, kinds in types.items():
        size = graph[group].size
        known = np.isin(kinds, (SHARED, DROPPED, *range(len(names))))
        if kinds.shape != (size,) or not known.all():
            raise KeepError(f"types[{group!r}] are not types of {size} channels")
        placed = out.get(group, dict.fromkeys(names, np.arange(size)))
        out[group] = {
            name: _slots(placed[name], kinds, t) for t, name in enumerate(names)
        }
    check(graph, names, out)
    return out


def _slots(
    placed: Int[np.ndarray, "n"], kinds: Int[np.ndarray, "n"], task: int
) -> Int[np.ndarray, "n"]:
    kind = kinds[placed]
    return np.where(kind == SHARED, placed, np.where(kind == task, OWN, DROPPED))
