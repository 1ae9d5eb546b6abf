"""How much of each vector to add: tried out on data that were put aside for choices."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from cutjax.errors import DataError

Point = tuple[float, ...]


class Trial(NamedTuple):
    """One merged network that was evaluated.

    Attributes:
        scale: a number, or one by name.
        value: what `evaluate` gave.
    """

    scale: Any
    value: float


def best_scale(
    merge: Callable[[Any], Any],
    grid: Iterable[float],
    evaluate: Callable[[Any], Any],
    *,
    names: Sequence[str] | None = None,
) -> tuple[Any, list[Trial]]:
    """The scale whose merged network does best by a metric, on validation data.

    With `names`, by coordinates: the best common scale first, then one name's after
    another, round and round until no single change is better. That is a local optimum.
    No point is evaluated twice, and what else the data are is up to `evaluate`: pass it
    nothing of the test split.

    Args:
        merge: from a scale to parameters, as `lambda s: arithmetic(parent, v, s)`.
        grid: the numbers to try; among equal ones the first wins.
        evaluate: from parameters to a number, higher is better. NaN is never chosen.
        names: of the vectors, for a scale each; without, one number for all.

    Returns:
        `(scale, history)`: a number, or one by name; and every trial, in order.

    Raises:
        DataError: nothing to try, or NaN everywhere.

    Example:
        >>> grid = [0.0, 0.5, 1.0]
        >>> scale, history = best_scale(lambda s: s, grid, lambda s: -abs(s - 0.6))
        >>> scale, len(history)
        (0.5, 3)
    """
    numbers, size = list(dict.fromkeys(grid)), 1 if names is None else len(names)
    if not numbers or not size:
        raise DataError(
            f"grid={numbers}, names={names}; nothing to try, pass one or more of each"
        )
    seen: dict[Point, Trial] = {}

    def value(point: Point) -> float:
        if point not in seen:
            scale = point[0] if names is None else dict(zip(names, point, strict=True))
            seen[point] = Trial(scale, float(evaluate(merge(scale))))
        found = seen[point].value
        return -math.inf if math.isnan(found) else found

    # max takes the first among equals.
    now = max([(number,) * size for number in numbers], key=value)
    if all(math.isnan(trial.value) for trial in seen.values()):
        raise DataError(
            f"evaluate gave NaN for every scale of {numbers}; try smaller ones"
        )
    now = _climbed(now, numbers, value) if size > 1 else now
    return seen[now].scale, list(seen.values())


def _climbed(
    now: Point, numbers: Sequence[float], value: Callable[[Point], float]
) -> Point:
    """Better by one coordinate at a time, until none is; it stays where equal."""
    since = 0
    for at in itertools.cycle(range(len(now))):
        if since == len(now):
            break
        line = [(*now[:at], number, *now[at + 1 :]) for number in numbers]
        best = max([now, *line], key=value)
        since = 1 if best != now else since + 1
        now = best
    return now
