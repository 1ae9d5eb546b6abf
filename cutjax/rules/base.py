"""What a rule is: what a primitive says of axes, and how it changes when they shrink.

A rule has up to three functions, side by side for each primitive:

`infer(w, eqn, ins)` states equations through `w.solver` and returns, for each output,
its axes (a tuple of variables) or a whole `Value`.
`resize(k, eqn, ins, outs)` returns the parameters of the equation that change with the
sizes: `k.count(var)` is the kept width of an axis, `k.mask(var)` its kept positions.
`evaluate(ev, eqn, sub, ins, outs, args)` replaces the plain binding where changing
parameters is not enough (control flow, counts, iota).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from jax.extend.core import Primitive

from cutjax._compat import primitive
from cutjax.errors import TraceError
from cutjax.unify import Var


class Summed:
    """Axes that were summed over; `mean` once a division by their count was seen.

    `runs`: the axes of each sum in turn, where a sum went on. `power`: what became of
    it since, such as 0.5 for its root. `centred`: squares of what had its mean over
    these axes subtracted were summed. `less`: by which the divisor is below the count.
    """

    __slots__ = ("centred", "less", "mean", "parents", "power", "runs")

    def __init__(
        self,
        runs: tuple[tuple[Var, ...], ...],
        parents: tuple["Summed", ...] = (),
        power: float = 1.0,
        centred: bool = False,
    ):
        self.runs, self.parents, self.power = runs, parents, power
        self.centred, self.mean, self.less = centred, False, 0.0

    @property
    def dims(self) -> tuple[Var, ...]:
        """All axes summed over."""
        return self.since(0)

    def since(self, first: int) -> tuple[Var, ...]:
        """The axes of the sums from number `first` on."""
        return tuple(d for run in self.runs[first:] for d in run)

    def until(self, first: int) -> "Summed | None":
        """What is left once a mean was made of the sums from number `first` on."""
        if not first:
            return None
        found: list[Summed] = []
        todo: list[Summed] = [self]
        while todo:
            one = todo.pop()
            if len(one.runs) > first:
                todo += one.parents
            else:
                found.append(one)
        return Summed(self.runs[:first], tuple(found), self.power, self.centred)

    def mark_mean(self, first: int = 0, less: float = 0) -> None:
        """The sums from number `first` on, and those in them, are parts of a mean."""
        self.mean, self.less = True, less
        size = math.prod(d.size for d in self.dims)
        for parent in self.parents:
            if len(parent.runs) > first:
                share = math.prod(d.size for d in parent.dims) / size
                parent.mark_mean(first, less * share)


def summed_over(
    before: Summed | None, gone: tuple[Var, ...], centred: bool = False
) -> Summed:
    """A sum that goes on over more axes; for a mean all of them count, or the last."""
    if before is None or before.power != 1:
        return Summed((gone,), centred=centred)
    return Summed((*before.runs, gone), (before,), centred=centred and before.centred)


class Moment(NamedTuple):
    """A mean over some axes (order 0), what it was subtracted from (1), or squares (2).

    Their sum may be divided by one less than their count.
    """

    dims: tuple[Var, ...]
    order: int


class Share(NamedTuple):
    """A value was divided by numbers that count nothing which was summed before it.

    One of them is a count if that many things are summed next, or if the value is
    the cotangent of a sum (`pulled`) and copied to that many: to `dims` so far. `as_if`
    it counted other axes it may have shrunk already.
    """

    numbers: tuple[float, ...]
    pulled: bool
    dims: tuple[Var, ...] = ()
    as_if: tuple[Var, ...] = ()


class Value(NamedTuple):
    """What is known about one array while walking a jaxpr.

    `known`: its value, if it is a constant that is the same everywhere. `summed`: the
    axes summed over to get it. `share`: what it was divided by, if not by their count.
    `data`: whether it depends on the inputs; `const`: on nothing, neither inputs nor
    parameters. `param`: the parameter leaf that it is a moved copy of. `joined`: it is
    put together of such copies. `index`: the constant indices that picked it, or where
    they wrote to. `moment`: that it is a mean, or was centred by one.
    """

    dims: tuple[Var, ...]
    known: Any = None
    summed: Summed | None = None
    data: bool = False
    param: int | None = None
    const: bool = False
    index: Any = None
    share: Share | None = None
    joined: bool = False
    moment: Moment | None = None


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


def register_rule(
    primitive: Primitive,
    infer: Callable[..., list],
    resize: Callable[..., dict[str, Any]] | None = None,
) -> None:
    """Teach cutjax a primitive of your own, or replace the rule of another.

    Like JAX's own tables of rules, this one belongs to the process: register where the
    primitive is defined.

    Args:
        primitive: the primitive object.
        infer: `infer(w, eqn, ins)`: what the equation says of axes. `ins` holds a
            `Value` per operand, `value.dims` a variable per axis. Returns, per output,
            a tuple of variables: those of operands where the channels are the same,
            `w.solver.new(size)` for others. `w.solver.unify(a, b)` ties two axes,
            `w.solver.pin(a, reason)` keeps one whole. Ready to use:
            `cutjax.rules.same_axes`, `cutjax.rules.pinned(reason)`.
        resize: `resize(k, eqn, ins, outs)`: the parameters of the equation that change
            with the sizes, as a dict; `k.count(d)` is the kept width of an axis.

    Raises:
        TraceError: `primitive` is no primitive.

    Example:
        >>> import jax, jax.numpy as jnp, cutjax as cj
        >>> from jax.extend.core import Primitive
        >>> squash = Primitive("squash")
        >>> _ = squash.def_impl(jnp.tanh), squash.def_abstract_eval(lambda x: x)
        >>> cj.register_rule(squash, infer=cj.rules.same_axes)
        >>> apply = lambda w, x: squash.bind(x @ w["a"]) @ w["b"]
        >>> w = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))}
        >>> [group.name for group in cj.trace(apply, w, jnp.ones((1, 2))).free]
        ['a:1']
    """
    if not isinstance(primitive, Primitive):
        raise TraceError(
            f"{primitive!r} is no primitive; pass the object that is bound, such as "
            "`jax.extend.core.Primitive('mine')`"
        )
    add([primitive], infer, resize)


def shape_of(var: Any) -> tuple[int, ...]:
    """The shape of a jaxpr variable or literal."""
    return tuple(getattr(var.aval, "shape", ()))


def rest(dims: tuple[Var, ...], gone: Iterable[int]) -> tuple[Var, ...]:
    """The axes that are left without those at some positions."""
    out = set(gone)
    return tuple(d for i, d in enumerate(dims) if i not in out)


def counts(k: Any, dims: Iterable[Var]) -> tuple[int, ...]:
    """The kept shape of an array."""
    return tuple(k.count(d) for d in dims)
