"""Numbers that count: where a division makes a mean of a sum, and what it becomes.

A count shrinks with the axes that it counts. It is known by its value: that of the
sizes of the axes summed over, all or those of the last sums, or one less in an unbiased
variance, where squares of what was centred were summed. The division may follow the
sum (`x.sum() / n`) or its root (`norm(x) / sqrt(n)`), come before it (`(x / n).sum()`),
or be that of a sum which was transposed: the cotangent of a mean is divided first and
then copied to all that were averaged.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cutjax.rules.base import Share, Summed, Value
from cutjax.unify import Var


def number_of(value: Value) -> float | None:
    """A real constant; the divisor of complex sums may have an imaginary part of 0."""
    if value.known is None or np.imag(value.known) != 0:
        return None
    return float(np.real(value.known))


def total(dims: Iterable[Var]) -> int:
    """How many things there are along some axes."""
    return math.prod(d.size for d in dims)


def is_count(number: float | None, of: int, most: int = 1) -> int | None:
    """0 for the full count, up to `most` for less (an unbiased variance), else None."""
    for less in range(most + 1):
        if number is not None and of > less + 1 and _near(number, of - less):
            return less
    return None


def _near(a: float, b: int) -> bool:
    return abs(a - b) <= 1e-6 * abs(b)


class Count(NamedTuple):
    """Counted are, but for `less` of them, what the sums from number `first` on sum."""

    first: int
    less: int


def count_in(number: float, summed: Summed) -> Count | None:
    """What a divisor of a power of sums counts: a root, by the root of the count."""
    by = number if summed.power == 1 else _root(number, summed.power)
    for first in range(len(summed.runs)):
        less = is_count(by, total(summed.since(first)), int(summed.centred))
        if less is not None:
            return Count(first, less)
    return None


def _root(number: float, power: float) -> float | None:
    if number <= 0:
        return None
    with np.errstate(all="ignore"):
        return float(np.float_power(number, 1 / power))


def joint(values: Sequence[Value]) -> Summed | None:
    """Alternatives or summands that are sums of equally many, or are constants."""
    found = [v.summed for v in values if v.summed is not None]
    if not found or any(v.summed is None and v.known is None for v in values):
        return None
    first, *others = dict.fromkeys(found)
    if any((total(s.dims), s.power) != (total(first.dims), first.power) for s in found):
        return None
    if not others:
        return first
    shapes = {tuple(map(total, s.runs)) for s in found}
    runs = first.runs if len(shapes) == 1 else (first.dims,)
    centred = all(s.centred for s in found)
    return Summed(runs, (first, *others), first.power, centred)


def kept_counts(k: Any, summed: Summed, first: int = 0) -> set[int]:
    """How many of the things summed stay: several, of alternatives that differ."""
    alike = [s for s in summed.parents if total(s.dims) == total(summed.dims)]
    own = {math.prod(k.count(d) for d in summed.since(first))}
    return own.union(*(kept_counts(k, s, first) for s in alike if len(s.runs) > first))


def some_of(value: Value, dims: tuple[Var, ...]) -> Value:
    """Some positions of a value: what is known of each of them still holds."""
    whole = value.share is None or not value.share.dims
    return Value(dims, summed=value.summed, share=value.share if whole else None)


def beside(values: Sequence[Value], dims: tuple[Var, ...]) -> Value:
    """Values side by side, of which what is known of each of them holds."""
    shares = {value.share for value in values}
    same = shares.pop() if len(shares) == 1 else None
    whole = same is None or not same.dims
    joined = all(value.param is not None or value.joined for value in values)
    return Value(
        dims, summed=joint(values), share=same if whole else None, joined=joined
    )


def powered(value: Value, power: float) -> Summed | None:
    """What a power of a sum is."""
    summed = value.summed
    if summed is None or power == 0:
        return None
    return Summed(summed.runs, (summed,), summed.power * power, summed.centred)


def taken(w: Any, summed: Summed, number: float, first: int) -> Share | None:
    """What is left to ask of a mean: a cotangent may be one by chance.

    It was summed over other axes, as many as those that it will be copied to.
    """
    if summed.power != 1 or not w.pulls():
        return None
    return Share((number,), True, as_if=summed.since(first))


def ratio(values: Sequence[Value]) -> Summed | None:
    """What a quotient by a sum is: of a constant, or of another power of it."""
    above, below = values
    if above.summed is None or below.summed is None:
        return None if number_of(above) is None else powered(below, -1)
    if above.summed.power == 1 or above.summed.dims != below.summed.dims:
        return None
    power = above.summed.power - below.summed.power
    if power == 0:  # of two norms: nothing that grows with the channels
        return None
    return Summed(above.summed.runs, (above.summed, below.summed), power)


def share(w: Any, value: Value, number: float | None, dtype: Any) -> Share | None:
    """That a value was divided by a number, too."""
    before = value.share
    if (
        number is None
        or not 0 < number < np.inf
        or not jax.numpy.issubdtype(dtype, np.inexact)
    ):
        return before
    pulled = w.pulls()
    if before is None or before.pulled != pulled or before.as_if:
        return Share((number,), pulled)
    return before._replace(numbers=(*before.numbers, number)[-4:])


class Rooted(NamedTuple):
    """A cotangent over the root of a count, times the slope of the root of a sum."""

    summed: Summed
    less: int
    power: float

    def lack(self, k: Any) -> float:
        """What it lacks when what was summed is cut."""
        return factor(k, self.summed.dims, self.less) ** self.power


def rooted(ins: Sequence[Value]) -> Rooted | None:
    """Whether a product of two is one of these."""
    for over, slope in (ins, ins[::-1]):
        summed = slope.summed
        if summed is None or summed.power % 1 == 0:
            continue
        if over.share is None or not over.share.pulled:
            continue
        for number in over.share.numbers:
            count = max(number, 1 / number) ** 2
            less = is_count(count, total(summed.dims), int(summed.centred))
            if less is not None:
                return Rooted(summed, less, 0.5 if number > 1 else -0.5)
    return None


def spread(share: Share | None, new: Sequence[Var]) -> Share | None:
    """A share that is copied along more axes."""
    if share is None or not share.pulled:
        return None
    return share._replace(dims=(*share.dims, *new))


def counted(share: Share | None) -> int | None:
    """Whether what a cotangent was divided by counts what it is copied to."""
    return _of(share.numbers, share.dims, (0, 1)) if share and share.dims else None


def lack(k: Any, share: Share) -> float:
    """What shares copied to fewer lack."""
    less = counted(share)
    if less is None:
        return 1.0
    done = factor(k, share.as_if, less) if share.as_if else 1.0
    return factor(k, share.dims, less) / done


def counts_next(share: Share | None, gone: Sequence[Var]) -> bool:
    """Whether what a value was divided by counts what is summed now."""
    if share is None or share.dims or share.as_if:
        return False
    return _of(share.numbers, gone, (0,)) is not None


def _of(numbers: Iterable[float], dims: Sequence[Var], which: Sequence[int]):
    found = (is_count(number, total(dims)) for number in numbers)
    return next((less for less in found if less in which), None)


def factor(k: Any, dims: Sequence[Var], less: int = 0) -> float:
    """What a quotient by the full count of some axes lacks when they are cut."""
    kept = math.prod(k.count(d) for d in dims)
    return (total(dims) - less) / max(kept - less, 1)


def scaled(value: Any, by: float) -> Any:
    """An array times a number, in its own type."""
    return value if by == 1 else value * np.asarray(by, value.dtype)
