"""Walking a jaxpr once, in any nesting, to collect what its primitives say of axes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from cutjax._compat import Literal, open_jaxpr, primitive, transposed, user_line
from cutjax.errors import TraceError
from cutjax.rules.base import RULES, Summed, Value, shape_of
from cutjax.rules.constants import folded, on_the_host
from cutjax.rules.gaps import GAPS
from cutjax.rules.signs import nonnegative
from cutjax.unify import Pin, Solver, Var, Where


class Site(NamedTuple):
    """A place where channels are read: operand `at` is summed over its axes `axes`.

    `inner` are the axes contracted; of a grouped convolution only those in a group.
    `looped`: inside of a loop or branch, from where no value can be taken out. `alone`:
    the channel axes that nothing but means reads, known once all was walked.
    """

    at: int
    axes: tuple[int, ...]
    inner: tuple[Var, ...]
    summed: Summed | None = None
    looped: bool = False
    alone: frozenset[Var] = frozenset()


class Term(NamedTuple):
    """Multiply-adds of one contraction: `times` repeats over the axes `dims`.

    It sums over `inner` and makes the channels `made`; `param` is its kernel, if that
    is a parameter.
    """

    times: int
    dims: tuple[Var, ...]
    frame: "Frame"
    index: int
    inner: tuple[Var, ...]
    made: tuple[Var, ...]
    param: int | None
    where: Where | None


class Frame:
    """One walk over one jaxpr: a value per variable, sub-frames per equation.

    `times`: how often it runs, in loops of known length.
    """

    def __init__(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        outer: "tuple[Frame, int] | None" = None,
        where: Where | None = None,
        times: int = 1,
    ):
        self.jaxpr, self.consts, self.outer, self._where = jaxpr, consts, outer, where
        self.times = times
        self.values: dict[Any, Value] = {}
        self.subs: dict[int, list[Frame]] = {}
        self.sites: dict[int, Site] = {}
        self.makers: dict[Any, int] = {}
        self.constants: dict[Any, np.ndarray | None] = {}

    def where(self, index: int) -> Where:
        """An equation and the equations around it."""
        return Where(self.jaxpr.eqns[index], self._where)

    def read(self, atom: Any) -> Value:
        """The value of a variable or literal."""
        if isinstance(atom, Literal):
            known = np.asarray(atom.val)[()] if np.ndim(atom.val) == 0 else None
            return Value(tuple(Var(n) for n in shape_of(atom)), known, const=True)
        return self.values[atom]

    @property
    def outs(self) -> list[Value]:
        """Values of the outputs."""
        return [self.read(v) for v in self.jaxpr.outvars]


_FOLDS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": lambda a, b: a / b if np.issubdtype(a.dtype, np.floating) else a // b,
    "max": np.maximum,
    "min": np.minimum,
    "pow": np.float_power,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "neg": np.negative,
    "convert_element_type": lambda a: a,
    "copy": lambda a: a,
}
FOLDS = {primitive(name): fn for name, fn in _FOLDS.items()}


class Walker:
    """Runs rules over a jaxpr; what they report gathers here."""

    def __init__(self, on_unknown: str = "raise") -> None:
        self.solver = Solver()
        self.on_unknown = on_unknown
        self.frames: list[Frame] = []
        self.terms: list[Term] = []
        self.makers: list[tuple[int, tuple[Var, ...]]] = []
        self.used: dict[int, int] = {}
        self.means: list[tuple[tuple[Var, ...], Where | None]] = []
        self.sums: dict[tuple[Frame, int], tuple[tuple[Var, ...], Summed | None]] = {}
        self.mesh: dict[str, int] = {}
        self._times = 1
        self._loops = 0
        self._at: tuple[Frame, int] | None = None

    def run(self, jaxpr: Any, ins: Sequence[Value]) -> Frame:
        """Walk a jaxpr whose inputs are known; returns its frame."""
        opened, consts = open_jaxpr(jaxpr)
        frame = Frame(opened, consts, self._at, self.solver.where, self._times)
        self.frames.append(frame)
        for var, const in zip(opened.constvars, consts, strict=True):
            known = (
                np.asarray(const)[()]
                if np.ndim(const) == 0 and on_the_host(const)
                else None
            )
            dims = self.solver.news(shape_of(var))
            frame.values[var] = Value(dims, known, const=True)
        frame.values.update(zip(opened.invars, ins, strict=True))
        outer, at = self.solver.where, self._at
        for index, eqn in enumerate(opened.eqns):
            self.solver.where, self._at = Where(eqn, outer), (frame, index)
            self._step(frame, eqn)
        self.solver.where, self._at = outer, at
        return frame

    def _step(self, frame: Frame, eqn: Any) -> None:
        ins = [frame.read(atom) for atom in eqn.invars]
        rule = RULES.get(eqn.primitive)
        outs = self._unknown(eqn, ins) if rule is None else rule.infer(self, eqn, ins)
        # An equation with a body uses nothing itself: nesting changes no order.
        for value in () if self._at[1] in frame.subs else ins:  # type: ignore[index]
            if value.param is not None:
                self.used.setdefault(value.param, len(self.used))
        data = any(value.data for value in ins)
        const = all(value.const for value in ins)
        for var, out in zip(eqn.outvars, outs, strict=True):
            if not isinstance(out, Value):
                out = Value(tuple(out))
            frame.makers[var] = self._at[1]  # type: ignore[index]
            frame.values[var] = out._replace(
                data=data or out.data,
                const=const,
                known=_folded(eqn, ins, var) if out.known is None else out.known,
            )

    def _unknown(self, eqn: Any, ins: Sequence[Value]) -> list[tuple[Var, ...]]:
        if self.on_unknown != "pin":
            gap = GAPS.get(eqn.primitive)
            raise self.error(
                eqn,
                f"no rule for the primitive `{eqn.primitive}`"
                + (f": {gap}" if gap else ""),
                "cutjax.trace(..., on_unknown='pin') keeps whole whatever reaches it; "
                "cutjax.register_rule(primitive, infer=...) teaches what it does",
            )
        reason = f"reaches `{eqn.primitive}`, for which there is no rule"
        for value in ins:
            for d in value.dims:
                self.solver.pin(d, reason)
        return [self.solver.news(shape_of(v), reason) for v in eqn.outvars]

    def enter(self, jaxpr: Any, ins: Sequence[Value]) -> Frame:
        """Walk a jaxpr nested in the equation at hand, and remember its frame."""
        frame, index = self._at  # type: ignore[misc]
        sub = self.run(jaxpr, ins)
        frame.subs.setdefault(index, []).append(sub)
        return sub

    @contextmanager
    def looping(self, times: int = 1):
        """Within, contractions count `times` times (the body of a loop or branch)."""
        before, self._times, self._loops = (
            self._times,
            self._times * times,
            self._loops + 1,
        )
        yield
        self._times, self._loops = before, self._loops - 1

    @contextmanager
    def sharded(self, sizes: Mapping[str, int]):
        """Within, mesh axes have names and sizes."""
        before, self.mesh = self.mesh, {**self.mesh, **sizes}
        yield
        self.mesh = before

    @contextmanager
    def dearest(self):
        """Within, of the branches entered only the dearest at full size is counted."""
        before, self.terms = self.terms, []
        found: list[list[Term]] = []

        def branch(jaxpr: Any, ins: Sequence[Value]) -> Frame:
            self.terms = []
            frame = self.enter(jaxpr, ins)
            found.append(self.terms)
            return frame

        yield branch
        self.terms = before + max(found, key=_multiply_adds, default=[])

    def contraction(
        self,
        ins: Sequence[Value],
        axes: Sequence[Sequence[int]],
        inner: Sequence[Var],
        free: Sequence[Sequence[Var]],
        cost: Sequence[Var],
        summed: Summed | None = None,
    ) -> None:
        """Report a contraction: axes summed over and left free per operand, and cost.

        `inner` are the dimensions summed over; of a grouped convolution only those
        within a group.
        """
        frame, index = self._at  # type: ignore[misc]
        at = 0 if ins[0].data or not ins[1].data else 1
        both = ins[1 - at].data
        made = [d for i, dims in enumerate(free) if both or i != at for d in dims]
        self.terms.append(
            Term(
                *(self._times, tuple(cost), frame, index),
                *(tuple(inner), tuple(made), ins[1 - at].param, self.solver.where),
            )
        )
        looped = self._loops > 0
        self.sums[frame, index] = tuple(inner), summed
        frame.sites[index] = Site(at, tuple(axes[at]), tuple(inner), summed, looped)
        for value, dims in zip(ins, free, strict=False):
            self.made(value, dims)

    def made(self, value: Value, dims: Iterable[Var]) -> None:
        """Report that a parameter makes the channels `dims`."""
        if value.param is not None:
            self.makers.append((value.param, tuple(dims)))

    def read(self, value: Value, dims: Sequence[Var], summed: Summed) -> None:
        """Report that the equation at hand sums its operand over `dims`."""
        frame, index = self._at  # type: ignore[misc]
        self.sums[frame, index] = tuple(dims), summed
        if not value.const:
            axes = tuple(frame.jaxpr.eqns[index].params["axes"])
            frame.sites[index] = Site(0, axes, tuple(dims), summed, self._loops > 0)

    def constant(self, atom: Any) -> np.ndarray | None:
        """The value of an operand at hand, if it is a small constant integer array."""
        return folded(self._at[0], atom)  # type: ignore[index]

    def nonnegative(self, atom: Any) -> bool:
        """Whether an operand at hand is known to have no negative element."""
        return nonnegative(self._at[0], atom)  # type: ignore[index]

    def pulls(self) -> bool:
        """Whether the equation at hand was made by reverse differentiation."""
        where = self.solver.where
        while where is not None and not transposed(where.eqn.source_info):
            where = where.outer
        return where is not None

    def note_mean(self, dims: Sequence[Var]) -> None:
        """Report a mean over `dims`."""
        self.means.append((tuple(dims), self.solver.where))

    def error(self, eqn: Any, what: str, remedy: str) -> TraceError:
        """An error about an equation, with the user's line that it comes from."""
        return TraceError(f"{what}\n  at {line_of(self.solver.where)}\n  try: {remedy}")


def said(pin: Pin) -> str:
    """A pin in words: why, and at which line."""
    return f"{pin.reason}, {line_of(pin.where)}" if pin.where else pin.reason


def line_of(where: Where | None) -> str:
    """The user's source line of an equation, or of the call that it is nested in."""
    while where is not None:
        line = user_line(where.eqn.source_info)
        if line is not None:
            return line
        where = where.outer
    return "an unknown line (traced without source information)"


def _multiply_adds(terms: Sequence[Term]) -> int:
    return sum(t.times * math.prod(d.size for d in t.dims) for t in terms)


def _folded(eqn: Any, ins: Sequence[Value], out: Any) -> Any:
    """What is the same everywhere, of such values (`n - ddof` in a variance)."""
    fold = FOLDS.get(eqn.primitive)
    if fold is None or any(v.known is None for v in ins):
        return None
    with np.errstate(all="ignore"):
        return np.asarray(fold(*(v.known for v in ins))).astype(out.aval.dtype)[()]
