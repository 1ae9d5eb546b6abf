"""Dimension variables and their unification.

Each axis of each array gets a variable. A primitive states equations between the
variables of its inputs and outputs; unifying solves them. A variable is free, equal to
another one, or has a form: a product (row-major) or a concatenation of variables.
Where two forms have no common refinement, or an operation needs an axis whole, the
variables are pinned, with the reason and the equation that says so.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

PRODUCT, CONCAT = "product", "concat"
WINDOW = "the window of a convolution"
POSITIONS = "positions under a sliding window"


class Where(NamedTuple):
    """An equation and the equation of the call that it is nested in."""

    eqn: Any
    outer: "Where | None"


class Pin(NamedTuple):
    """Why a variable may not shrink."""

    reason: str
    where: Where | None


class Link(NamedTuple):
    """Two variables that an equation ties: as equals, or as a form and its part."""

    a: "Var"
    b: "Var"
    where: Where | None


class Var:
    """A dimension variable: `link` to an equal one, or a `form` over `parts`."""

    __slots__ = ("form", "link", "parts", "pins", "size")

    def __init__(self, size: int):
        self.size = size
        self.link: Var | None = None
        self.form: str | None = None
        self.parts: tuple[Var, ...] = ()
        self.pins: list[Pin] = []


def find(var: Var) -> Var:
    """The representative of all variables equal to this one."""
    while var.link is not None:
        if var.link.link is not None:
            var.link = var.link.link
        var = var.link
    return var


def parts_of(var: Var) -> tuple[Var, ...]:
    """Representatives of the parts of a form, nested forms of its kind flattened."""
    out: list[Var] = []
    for part in map(find, var.parts):
        out.extend(parts_of(part) if part.form == var.form else (part,))
    return tuple(out)


def leaf_vars(var: Var) -> Iterator[Var]:
    """The free variables below, in order of position."""
    var = find(var)
    if var.form is None:
        yield var
    for part in var.parts:
        yield from leaf_vars(part)


class Solver:
    """Collects equations; `where` is the equation that states them at the moment.

    `links` keeps, in order, what was tied to what: the proof of every coupling.
    """

    def __init__(self) -> None:
        self.where: Where | None = None
        self.links: list[Link] = []

    def new(self, size: int, pin: str | None = None) -> Var:
        """A fresh variable."""
        var = Var(size)
        if pin is not None:
            var.pins.append(Pin(pin, self.where))
        return var

    def news(self, sizes: Sequence[int], pin: str | None = None) -> tuple[Var, ...]:
        """One fresh variable per size."""
        return tuple(self.new(size, pin) for size in sizes)

    def pin(self, var: Var, reason: str) -> None:
        """Nothing of `var` may go."""
        self._pin(var, Pin(reason, self.where))

    def _pin(self, var: Var, pin: Pin) -> None:
        for leaf in leaf_vars(var):
            if leaf.size > 1 and len(leaf.pins) < 4:
                leaf.pins.append(pin)

    def pinned(self, var: Var) -> bool:
        """Whether no position of `var` can go."""
        return all(leaf.pins or leaf.size <= 1 for leaf in leaf_vars(var))

    def product(self, parts: Sequence[Var]) -> Var:
        """The variable of axes merged in row-major order."""
        return self._form(PRODUCT, [p for p in parts if p.size != 1])

    def concat(self, parts: Sequence[Var]) -> Var:
        """The variable of axes laid end to end."""
        return self._form(CONCAT, [p for p in parts if p.size != 0])

    def _form(self, form: str, parts: list[Var]) -> Var:
        if len(parts) == 1:
            return parts[0]
        sizes = [p.size for p in parts]
        var = Var(math.prod(sizes) if form == PRODUCT else sum(sizes))
        if parts:
            var.form, var.parts = form, tuple(parts)
            self.links += [Link(var, part, self.where) for part in parts]
        return var

    def unify(self, a: Var, b: Var) -> None:
        """State that two axes hold the same channels; size 1 ties nothing."""
        link = Link(a, b, self.where)
        a, b = find(a), find(b)
        if a is b or (a.size == 1 and b.size == 1):
            return
        if a.size != b.size:
            raise ValueError(f"axes of sizes {a.size} and {b.size} cannot be equal")
        self.links.append(link)
        if a.form is None:
            self._bind(a, b)
        elif b.form is None:
            self._bind(b, a)
        elif not (self.pinned(a) and self.pinned(b)):
            self._refine(a, b)

    def unify_all(self, left: Sequence[Var], right: Sequence[Var]) -> None:
        """Unify axis by axis."""
        for a, b in zip(left, right, strict=True):
            self.unify(a, b)

    def _bind(self, free: Var, to: Var) -> None:
        for pin in free.pins:
            self._pin(to, pin)
        free.link = to

    def _refine(self, a: Var, b: Var) -> None:
        if a.form == b.form == CONCAT:
            fits = self._align(a, b, self._cut)
        elif a.form == b.form == PRODUCT:
            fits = self._align(a, b, self._factor)
        else:
            cat, prod = (a, b) if a.form == CONCAT else (b, a)
            outer, *inner = parts_of(prod)
            halves = self._factor(cat, outer.size)
            fits = halves is not None
            if halves is not None:
                self.unify(halves[0], outer)
                self.unify(halves[1], self.product(inner))
        if not fits:
            for var in (a, b):
                self.pin(var, "two layouts of one axis have no common refinement")

    def _align(self, a: Var, b: Var, cut: Any) -> bool:
        """Walk two lists of parts from the left, cutting the larger at each step."""
        left, right = list(parts_of(a))[::-1], list(parts_of(b))[::-1]
        while left and right:
            x, y = find(left.pop()), find(right.pop())
            if x.size != y.size:
                larger, smaller = (x, y) if x.size > y.size else (y, x)
                halves = cut(larger, smaller.size)
                if halves is None:
                    return False
                (left if larger is x else right).append(halves[1])
                x, y = halves[0], smaller
            self.unify(x, y)
        return True

    def _cut(self, var: Var, first: int) -> tuple[Var, Var] | None:
        """`var` as a concatenation whose first part has size `first`."""
        var = find(var)
        if var.form == PRODUCT:
            outer, *inner = parts_of(var)
            step = math.prod(p.size for p in inner)
            halves = self._cut(outer, first // step) if first % step == 0 else None
            if halves is None:
                return None
            return self.product([halves[0], *inner]), self.product([halves[1], *inner])
        if var.form == CONCAT:
            return self._cut_concat(var, first)
        halves = self._fresh(var, (first, var.size - first))
        self.unify(var, self.concat(halves))
        return halves

    def _cut_concat(self, var: Var, first: int) -> tuple[Var, Var] | None:
        head: list[Var] = []
        tail = list(parts_of(var))
        while tail and tail[0].size <= first:
            head.append(tail.pop(0))
            first -= head[-1].size
        if first:
            halves = self._cut(tail[0], first)
            if halves is None:
                return None
            head.append(halves[0])
            tail[0] = halves[1]
        return self.concat(head), self.concat(tail)

    def _factor(self, var: Var, outer: int) -> tuple[Var, Var] | None:
        """`var` as a product whose first part has size `outer`."""
        var = find(var)
        if outer == 0 or var.size % outer:
            return None
        inner = var.size // outer
        if var.form is None:
            halves = self._fresh(var, (outer, inner))
            self.unify(var, self.product(halves))
            return halves
        if var.form == PRODUCT:
            return self._factor_product(var, outer)
        return self._factor_concat(var, inner)

    def _factor_concat(self, var: Var, inner: int) -> tuple[Var, Var] | None:
        """Chunks of size `inner` laid end to end, all of them alike."""
        outers: list[Var] = []
        alike: list[Var] = []
        while True:
            first, *rest = parts_of(var) if find(var).form == CONCAT else (find(var),)
            if first.size % inner == 0:
                halves = self._factor(first, first.size // inner)
            else:
                # The chunk spans several parts: cut it off, wherever it ends.
                cut = self._cut(var, inner) if var.size > inner else (var, None)
                if cut is None:
                    return None
                halves = (Var(1), cut[0])
                rest = [] if cut[1] is None else [cut[1]]
            if halves is None:
                return None
            outers.append(halves[0])
            alike.append(halves[1])
            if not rest:
                break
            var = self.concat(rest)
        for other in alike[1:]:
            self.unify(other, alike[0])
        return self.concat(outers), alike[0]

    def _factor_product(self, var: Var, outer: int) -> tuple[Var, Var] | None:
        head: list[Var] = []
        tail = list(parts_of(var))
        while tail and outer % tail[0].size == 0 and outer > 1:
            head.append(tail.pop(0))
            outer //= head[-1].size
        if outer > 1:
            halves = self._factor(tail[0], outer)
            if halves is None:
                return None
            head.append(halves[0])
            tail[0] = halves[1]
        return self.product(head), self.product(tail)

    def _fresh(self, var: Var, sizes: tuple[int, int]) -> tuple[Var, Var]:
        halves = (Var(sizes[0]), Var(sizes[1]))
        for half in halves:
            half.pins = list(var.pins)
        return halves

    def segment(self, var: Var, start: int, stop: int) -> Var:
        """The positions `start:stop` of an axis."""
        if start == stop:
            return self.new(0)
        if self.pinned(var):
            return self.new(stop - start, "part of an axis that stays whole")
        for at, side in ((stop, 0), (start, 1)):
            if 0 < at < var.size:
                halves = self._cut(var, at)
                if halves is None:
                    self.pin(var, f"sliced at {at}, inside of a merged axis")
                    return self.new(stop - start, "part of an axis that stays whole")
                var = halves[side]
        return var
