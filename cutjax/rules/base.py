"""What a rule is: what a primitive says of axes, and how it changes when they shrink.

A rule has up to three functions, side by side for each primitive:

`infer(w, eqn, ins)` states equations through `w.solver` and returns, for each output,
its axes (a tuple of variables) or a whole `Value`.
`resize(k, eqn, ins, outs)` returns the parameters of the equation that change with the
sizes: `k.count(var)` is the kept width of an axis, `k.mask(var)` its kept positions.
`evaluate(ev, eqn, sub, ins, outs, args)` replaces the plain binding where changing
parameters is not enough (control flow, counts, iota).
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from cutjax._compat import primitive
from cutjax.unify import Var


class Summed:
    """Axes that were summed over; `mean` once a division by their count was seen."""

    __slots__ = ("dims", "mean", "parents")

    def __init__(self, dims: tuple[Var, ...], parents: tuple["Summed", ...] = ()):
        self.dims, self.parents, self.mean = dims, parents, False

    def mark_mean(self) -> None:
        """This sum, and the sums that it was made of, are parts of a mean."""
        self.mean = True
        for parent in self.parents:
            parent.mark_mean()


class Value(NamedTuple):
    """What is known about one array while walking a jaxpr.

    `known`: its value, for constant scalars. `summed`: the axes summed over to get it.
    `data`: whether it depends on the inputs. `param`: the parameter leaf that it is a
    moved copy of.
    """

    dims: tuple[Var, ...]
    known: Any = None
    summed: Summed | None = None
    data: bool = False
    param: int | None = None


class Rule(NamedTuple):
    """The functions of one primitive."""

    infer: Callable[..., list]
    resize: Callable[..., dict[str, Any]] | None = None
    evaluate: Callable[..., list] | None = None


RULES: dict[Any, Rule] = {}


def rule(names: str, resize=None, evaluate=None):
    """Decorate the `infer` of the primitives named; absent ones are skipped.

    Example:
        >>> from cutjax.rules import RULES
        >>> import jax
        >>> jax.lax.sin_p in RULES
        True
    """

    def register(infer):
        add(map(primitive, names.split()), infer, resize, evaluate)
        return infer

    return register


def add(primitives: Iterable[Any], infer, resize=None, evaluate=None) -> None:
    """Enter one rule for several primitive objects."""
    for prim in primitives:
        if prim is not None:
            RULES[prim] = Rule(infer, resize, evaluate)


def shape_of(var: Any) -> tuple[int, ...]:
    """The shape of a jaxpr variable or literal."""
    return tuple(getattr(var.aval, "shape", ()))


def counts(k: Any, dims: Iterable[Var]) -> tuple[int, ...]:
    """The kept shape of an array."""
    return tuple(k.count(d) for d in dims)
