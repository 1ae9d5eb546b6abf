"""Evaluating a function at smaller sizes: the heart of `shrink`.

The function is traced at full size, its axes are inferred again, and its equations are
evaluated on the small arrays with parameters that fit them. All of it happens while
tracing: the compiled program holds no trace of the full sizes.
"""

import functools
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool

import cutjax.rules  # noqa: F401  (fills the table of rules)
from cutjax._compat import Literal, bind, scope_of, user_line
from cutjax.dims import Axis, Concat, Fixed, Leaf, Product
from cutjax.errors import KeepError
from cutjax.means import mark_alone
from cutjax.rules.base import RULES, Value, counts
from cutjax.told import pin_constants
from cutjax.unify import PRODUCT, Link, Solver, Var, find, parts_of
from cutjax.walk import Frame, Site, Walker, line_of

Axes = tuple[Axis, ...]
Run = Callable[[Sequence[Any]], list[Any]]
Hook = Callable[["Kept", "Reader", Run, list[Any]], list[Any]]


class Kept:
    """Kept positions per variable; `links` of the solver explain what is refused."""

    def __init__(self, links: Sequence[Link] = ()) -> None:
        self._links = links
        self._masks: dict[Var, np.ndarray] = {}
        self._names: dict[Var, str] = {}
        self._counts: dict[Var, int] = {}

    def assign(self, var: Var, mask: Bool[np.ndarray, "_"], name: str) -> None:
        """State that of `var` these positions stay; forms are taken apart."""
        var = find(var)
        if var.form is not None:
            pieces = _pieces(var, mask)
            if pieces is None:
                sizes = [p.size for p in parts_of(var)]
                raise KeepError(
                    f"this function folds {name!r} into axes of sizes {sizes}; the "
                    f"kept channels are not a grid of these ({self._ties(var)})"
                )
            for part, piece in zip(parts_of(var), pieces, strict=True):
                self.assign(part, piece, name)
            return
        known = self._masks.get(var)
        if known is not None and not np.array_equal(known, mask):
            raise KeepError(
                f"{self._names[var]!r} and {name!r} share channels in this function, "
                f"but the keep treats them differently ({self._ties(var)})"
            )
        if var.pins and not mask.all():
            pin = var.pins[0]
            raise KeepError(
                f"{name!r} cannot shrink in this function: {pin.reason}, "
                f"at {line_of(pin.where)}"
            )
        self._masks[var], self._names[var] = mask, name

    def _ties(self, var: Var) -> str:
        root = find(var)
        met = (link.where for link in self._links if root in map(find, link[:2]))
        lines = dict.fromkeys(line_of(where) for where in met if where is not None)
        return "; ".join([*lines][:3]) or "stated by its shape"

    def name(self, var: Var) -> str | None:
        """The group that a free variable belongs to."""
        return self._names.get(find(var))

    def mask(self, var: Var) -> Bool[np.ndarray, "_"]:
        """Which positions stay."""
        var = find(var)
        if var.form is None:
            known = self._masks.get(var)
            return np.ones(var.size, bool) if known is None else known
        masks = [self.mask(part) for part in parts_of(var)]
        if var.form != PRODUCT:
            return np.concatenate(masks)
        out = masks[0]
        for mask in masks[1:]:
            out = (out[:, None] & mask).ravel()
        return out

    def count(self, var: Var) -> int:
        """How many positions stay."""
        root = find(var)
        if root not in self._counts:
            self._counts[root] = int(self.mask(root).sum())
        return self._counts[root]

    def whole(self, value: Value) -> bool:
        """Whether nothing of an array goes."""
        return all(self.count(d) == d.size for d in value.dims)


def _taken(const: Any, at: np.ndarray, axis: int) -> Any:
    """Some of an array: now, if it is known, or the next trace would see a gather."""
    if isinstance(const, Tracer):
        return jax.numpy.take(const, at, axis)
    if not isinstance(const, jax.Array):
        return np.take(const, at, axis)
    with jax.ensure_compile_time_eval():
        return jax.numpy.take(const, at, axis)


def _pieces(var: Var, mask: np.ndarray) -> Sequence[Any] | None:
    """The mask of each part of a form; None if it is not made of such."""
    parts = parts_of(var)
    sizes = [p.size for p in parts]
    if var.form != PRODUCT:
        return np.split(mask, np.cumsum(sizes)[:-1])
    grid = mask.reshape(sizes)
    axes = range(len(sizes))
    pieces = [grid.any(axis=tuple(j for j in axes if j != i)) for i in axes]
    outer = pieces[0]
    for piece in pieces[1:]:
        outer = np.multiply.outer(outer, piece)
    return pieces if np.array_equal(outer, grid) else None


def to_var(solver: Solver, axis: Axis, table: dict[str, Var]) -> Var:
    """The variable of a frozen axis; groups of one name share a variable."""
    match axis:
        case Leaf(name, size):
            return table.setdefault(name, Var(size))
        case Fixed(size, reason):
            return solver.new(size, reason or "stays whole")
        case Product(parts):
            return solver.product([to_var(solver, p, table) for p in parts])
        case Concat(parts):
            return solver.concat([to_var(solver, p, table) for p in parts])


def kept_of(
    table: Mapping[str, Var],
    keep: Mapping[str, np.ndarray],
    links: Sequence[Link] = (),
) -> Kept:
    """What stays of the groups in a table of variables; those not named stay whole."""
    kept = Kept(links)
    for name, var in table.items():
        kept.assign(var, np.asarray(keep.get(name, np.ones(var.size, bool))), name)
    return kept


def freeze(var: Var, name: Callable[[Var], Axis]) -> Axis:
    """The axis of a variable; `name` makes free variables leaves or fixed parts."""
    var = find(var)
    if var.form is None:
        return name(var)
    parts = tuple(freeze(part, name) for part in parts_of(var))
    return Product(parts) if var.form == PRODUCT else Concat(parts)


class Reader(NamedTuple):
    """An equation that reads channels, where, and what is known of its operands."""

    eqn: Any
    site: Site
    ins: list[Value]
    outs: list[Value]


class Evaluator:
    """Evaluates frames on small arrays.

    `hook(kept, reader, run, args)` stands around every equation that reads channels: it
    returns the outputs, calling `run` on operands of its choice. `flat` inlines calls
    whose body reads channels, giving up their derivative rules; `unroll` scans too
    that do the same in every step.
    """

    def __init__(
        self,
        kept: Kept,
        hook: Hook | None = None,
        flat: bool = False,
        unroll: bool = False,
    ):
        self.k, self.hook, self.flat, self.unroll = kept, hook, flat, unroll
        self._plain: dict[int, bool] = {}
        self._frozen: dict[str, np.ndarray] = {}
        self._alive: list[Any] = []

    def run(self, frame: Frame, args: Sequence[Any]) -> list[Any]:
        """Outputs of a frame on small inputs."""
        env = dict(zip(frame.jaxpr.invars, args, strict=True))
        for var, const in zip(frame.jaxpr.constvars, frame.consts, strict=True):
            env[var] = self.cut_const(const, frame.values[var])

        def read(atom):
            return atom.val if isinstance(atom, Literal) else env[atom]

        for index, eqn in enumerate(frame.jaxpr.eqns):
            with scope_of(eqn):
                outs = self.step(frame, index, eqn, [read(a) for a in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in frame.jaxpr.outvars]

    def step(self, frame: Frame, index: int, eqn: Any, args: list[Any]) -> list[Any]:
        """Outputs of one equation of a frame on small operands."""
        ins = [frame.read(atom) for atom in eqn.invars]
        outs = [frame.values[var] for var in eqn.outvars]
        site, sub = frame.sites.get(index), frame.subs.get(index)
        run = functools.partial(self._apply, eqn, sub, ins, outs)
        if site is None or self.hook is None:
            return run(args)
        return self.hook(self.k, Reader(eqn, site, ins, outs), run, args)

    def _apply(self, eqn: Any, sub: Any, ins, outs, args: Sequence[Any]) -> list[Any]:
        rule = RULES.get(eqn.primitive)
        if rule is None or (sub is not None and all(map(self.plain, sub))):
            return bind(eqn, args, eqn.params)
        if sub is None and (empty := self._empty(eqn, ins, outs)) is not None:
            return empty
        if rule.evaluate is not None:
            return rule.evaluate(self, eqn, sub, ins, outs, args)
        if rule.resize is None or all(self.k.whole(v) for v in (*ins, *outs)):
            return self.bind(eqn, args)
        return self.bind(eqn, args, **rule.resize(self.k, eqn, ins, outs))

    def _empty(self, eqn: Any, ins: Sequence[Value], outs: Sequence[Value]) -> Any:
        """Results of an equation that has none, or that convolves no channels.

        XLA refuses windows, groups and gathers of nothing, where numpy would not.
        """
        convolved = eqn.primitive is jax.lax.conv_general_dilated_p
        nothing = all(0 in counts(self.k, v.dims) for v in outs)
        nothing |= convolved and any(0 in counts(self.k, v.dims) for v in ins)
        if not nothing or any(0 in v.aval.shape for v in eqn.outvars):
            return None
        return [
            jax.numpy.zeros(counts(self.k, value.dims), var.aval.dtype)
            for value, var in zip(outs, eqn.outvars, strict=True)
        ]

    def bind(self, eqn: Any, args: Sequence[Any], **changed: Any) -> list[Any]:
        """Evaluate one equation, some of its parameters changed."""
        return bind(eqn, args, {**eqn.params, **changed})

    def plain(self, frame: Frame) -> bool:
        """Whether a frame can be evaluated as it stands: nothing cut or hooked."""
        if id(frame) not in self._plain:
            subs = [sub for subs in frame.subs.values() for sub in subs]
            self._plain[id(frame)] = (
                not (frame.sites and (self.hook is not None or self.flat))
                and all(self.k.whole(v) for v in frame.values.values())
                and all(map(self.plain, subs))
            )
        return self._plain[id(frame)]

    def cut_const(self, const: Any, value: Value, whole: Container[int] = ()) -> Any:
        """What is left of a full-size array, such as a constant of the function.

        Args:
            const: the array.
            value: its axes.
            whole: of these, the numbers of those that stay as they are.
        """
        for axis, d in enumerate(value.dims):
            if axis not in whole and self.k.count(d) != d.size:
                const = _taken(const, np.flatnonzero(self.k.mask(d)), axis)
        return const

    def axes(self, values: Sequence[Value]) -> list[Axes]:
        """Frozen axes of values, to evaluate another function of them."""
        return [tuple(freeze(d, self._name) for d in v.dims) for v in values]

    def _name(self, var: Var) -> Axis:
        # An id names a variable only as long as the variable lives.
        self._alive.append(var)
        name = f"_{id(var)}"
        self._frozen[name] = self.k.mask(var)
        return Leaf(name, var.size)

    def again(
        self, fn: Callable[..., list], axes: Sequence[Axes], args: Sequence[Any]
    ) -> tuple[list[Any], list[Axes]]:
        """Evaluate another full-size function on small arrays of known axes.

        Returns:
            Its small outputs and their axes.
        """
        outs, values, inner = resized(fn, axes, self._frozen, args)
        out_axes = inner.axes(values)
        self._alive.append(inner)
        self._frozen.update(inner._frozen)
        return outs, out_axes

    def error(self, eqn: Any, what: str, remedy: str) -> KeepError:
        """An error about an equation that cannot be made smaller."""
        line = user_line(eqn.source_info) or "an unknown line"
        return KeepError(f"{what}\n  at {line}\n  try: {remedy}")


class Resized(NamedTuple):
    """Small outputs, what is known about them, and the evaluator that made them."""

    outs: list[Any]
    values: list[Value]
    evaluator: Evaluator


def resized(
    fn: Callable[..., list],
    in_axes: Sequence[Axes],
    keep: Mapping[str, np.ndarray],
    args: Sequence[Any],
    *,
    data: Sequence[bool] | None = None,
    out_axes: Callable[[Sequence[Value], Sequence[Value]], Sequence[Axes | None]]
    | None = None,
    hook: Hook | None = None,
    flat: bool = False,
    on_unknown: str = "raise",
) -> Resized:
    """Evaluate `fn`, written for full sizes, on small arrays.

    Args:
        fn: a function of flat arrays that returns a list of arrays.
        in_axes: the axes of each full-size argument.
        keep: the kept positions of the groups named in `in_axes`.
        args: the small arguments.
        data: which arguments are data rather than parameters; all, if not given.
        out_axes: asked once `fn` was walked: from what is known of arguments and
            outputs to the axes of each output, if it mirrors parameters.
        hook: see `Evaluator`.
        flat: see `Evaluator`.
        on_unknown: see `trace`.

    Returns:
        The small outputs with what made them.
    """
    table: dict[str, Var] = {}
    walker = Walker(on_unknown)
    is_data = data or [True] * len(args)
    ins = [
        Value(
            tuple(to_var(walker.solver, a, table) for a in axes),
            data=is_data[i],
            param=None if is_data[i] else i,
        )
        for i, axes in enumerate(in_axes)
    ]
    frame = walker.run(jax.make_jaxpr(fn)(*map(_full_aval, in_axes, args)), ins)
    pin_constants(walker)
    if hook is not None:
        mark_alone(walker.frames)
    known = out_axes(ins, frame.outs) if out_axes else [None] * len(frame.outs)
    for value, axes in zip(frame.outs, known, strict=True):
        if axes is not None:
            dims = [to_var(walker.solver, a, table) for a in axes]
            walker.solver.unify_all(value.dims, dims)
    evaluator = Evaluator(kept_of(table, keep, walker.solver.links), hook, flat)
    return Resized(evaluator.run(frame, args), frame.outs, evaluator)


def _full_aval(axes: Axes, arg: Any) -> jax.ShapeDtypeStruct:
    dtype = arg.dtype if hasattr(arg, "dtype") else jax.numpy.result_type(arg)
    return jax.ShapeDtypeStruct(tuple(a.size for a in axes), dtype)


def flattened(
    fn: Callable[..., list], avals: Sequence[Any], number: int, *, unroll: bool = True
) -> Any:
    """The jaxpr of `fn` with calls and short scans that read channels inlined.

    Args:
        fn: a function of flat arrays that returns a list of arrays.
        avals: their shapes.
        number: how many of them, the first ones, are parameters.
        unroll: scans that do the same in every step too.
    """
    walker = Walker("pin")
    ins = [
        Value(walker.solver.news(a.shape), data=True, param=i if i < number else None)
        for i, a in enumerate(avals)
    ]
    frame = walker.run(jax.make_jaxpr(fn)(*avals), ins)
    evaluator = Evaluator(Kept(), flat=True, unroll=unroll)
    return jax.make_jaxpr(lambda *args: evaluator.run(frame, args))(*avals)
