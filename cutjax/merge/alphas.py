"""The threshold alpha that gives a wanted number of channels of a type."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cutjax.errors import BudgetError, KeepError, suggest

Levels = Float[np.ndarray, "t n"]


class Counts(NamedTuple):
    """How many channels are of each type, for each of several alphas."""

    shared: Int[np.ndarray, "k"]
    exclusive: Int[np.ndarray, "k"]


def solved(
    levels: Mapping[str, Levels],
    wanted: float | Mapping[str, int],
    count: Callable[[Counts], Int[np.ndarray, "k"]],
    what: str,
) -> dict[str, float]:
    """The alpha of each group; one for all, if a share is wanted.

    Args:
        levels: by group.
        wanted: at least, a share of all groups or a number by group; groups without a
            number get an alpha below everything.
        count: of the type.
        what: the type, for errors.

    Raises:
        KeepError: more channels than a group has, or an unknown group.
        BudgetError: no alpha gives so many.
    """
    if isinstance(wanted, Mapping):
        out = dict.fromkeys(levels, -np.inf)
        for group, number in wanted.items():
            if group not in levels:
                raise KeepError(f"no levels of {group!r}; {suggest(group, levels)}")
            size = levels[group].shape[1]
            if not 0 <= number <= size:
                raise KeepError(
                    f"{number} {what} channels of {group!r}, which has {size}"
                )
            out[group] = _alpha(levels[group], number, count, f"{what} of {group!r}")
        return out
    if not (isinstance(wanted, float | int | np.number) and 0 <= wanted <= 1):
        raise KeepError(f"{what}={wanted} is no share of 0 ... 1; numbers go by group")
    whole = np.concatenate(list(levels.values()), 1)
    number = int(np.ceil(wanted * whole.shape[1] - 1e-9))
    return dict.fromkeys(levels, _alpha(whole, number, count, what))


def counts(levels: Levels, alphas: Float[np.ndarray, "k"]) -> Counts:
    """What `regroup.types` would count for each alpha.

    Args:
        levels: of each task and channel.
        alphas: the thresholds.

    Example:
        >>> levels = np.array([[0.1, 0.1, 0.9], [0.2, 0.9, 0.9]])
        >>> [c.tolist() for c in counts(levels, np.array([0.0, 0.1, 0.2]))]
        [[3, 1, 1], [0, 2, 1]]
    """
    leave, go = _steps(levels)
    left, gone = (np.searchsorted(np.sort(v), alphas, "right") for v in (leave, go))
    return Counts(levels.shape[1] - left, left - gone)


def _steps(levels: Levels) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """From which alpha on each channel is not shared, and from which it is dropped."""
    alone = np.full((1, levels.shape[1]), -np.inf)
    ordered = np.sort(np.concatenate([alone, levels]), 0)
    return ordered[-2], ordered[-1]


def _alpha(
    levels: Levels,
    wanted: int,
    count: Callable[[Counts], Int[np.ndarray, "k"]],
    what: str,
) -> float:
    """Of the alphas that give the least number that is enough, the widest range.

    Exclusive channels first grow in number with alpha and then become fewer, as more
    and more are dropped: only the alphas up to the most are looked at.
    """
    edges = np.unique(np.concatenate([[-np.inf], *_steps(levels)]))
    edges = edges[edges < np.inf]
    number = count(counts(levels, edges))
    if number.max() < wanted:
        raise BudgetError(f"{wanted} {what} wanted; {number.max()} are the most")
    number = number[: number.argmax() + 1] if number.argmax() else number
    # Below all edges nothing is irrelevant, above them everything is dropped.
    width = np.array([np.inf, *np.diff(edges[1:]), 0.0])[: number.size]
    best = np.where(number == number[number >= wanted].min(), width, -1).argmax()
    low, high = float(edges[best]), float(edges[min(best + 1, edges.size - 1)])
    middle = (low + high) / 2
    return middle if low < middle < high else low
