"""Means, what is centred by one, and its squares: sums that may count one less.

An unbiased variance divides by one less than it sums. That number alone says little:
only where squares of what had its mean subtracted were summed is it a count.
"""

from collections.abc import Iterable

from cutjax.rules.base import Moment, Value
from cutjax.unify import Var, find


def _roots(dims: Iterable[Var]) -> set[Var]:
    return {find(d) for d in dims if d.size > 1}


def is_centred(moment: Moment | None, gone: Iterable[Var]) -> bool:
    """Whether a sum over some axes is one of squares of what was centred there."""
    return squares(moment) is not None and _roots(gone) <= _roots(moment.dims)  # type: ignore[union-attr]


def squares(moment: Moment | None) -> Moment | None:
    """What a sum leaves: sums of squares go on, other sums are none of these."""
    return moment if moment is not None and moment.order == 2 else None


def added(a: Value, b: Value) -> Moment | None:
    """Of a sum or difference: one of them may be the mean of the other."""
    if a.moment is not None and b.moment is not None and a.moment == b.moment:
        return a.moment
    for mean, value in ((a, b), (b, a)):
        if mean.moment is None or mean.moment.order != 0:
            continue
        if _roots(mean.moment.dims) & _roots(value.dims):
            return Moment(mean.moment.dims, 1)
    return None


def multiplied(a: Value, b: Value) -> Moment | None:
    """Of a product: squares, or what one of them is, weighted by the other."""
    found = [v.moment for v in (a, b) if v.moment is not None and v.moment.order]
    if len(found) < 2:
        return found[0] if found else None
    order = found[0].order + found[1].order
    alike = _roots(found[0].dims) == _roots(found[1].dims)
    return Moment(found[0].dims, 2) if alike and order == 2 else None


def raised(value: Value, power: float | None) -> Moment | None:
    """Of a power."""
    return multiplied(value, value) if power == 2 else None
