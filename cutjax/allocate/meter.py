"""The cost polynomial at widths that change one group at a time."""

import math
from collections import Counter
from collections.abc import Sequence

from cutjax.cost import counts, keys_of, pieces
from cutjax.dims import Axis, Concat, Fixed, Leaf, Product
from cutjax.graph import Graph

Monomial = tuple[str, ...]


def expand(axis: Axis) -> list[tuple[int, Monomial]]:
    """The number of positions of an axis as a sum of `factor * product of widths`.

    Example:
        >>> expand(Concat((Leaf("a", 4), Product((Fixed(3), Leaf("b", 2))))))
        [(1, ('a',)), (3, ('b',))]
    """
    match axis:
        case Leaf(name):
            return [(1, (name,))]
        case Fixed(size):
            return [(size, ())]
        case Concat(parts):
            return [term for part in parts for term in expand(part)]
        case Product(parts):
            return times(parts)


def times(axes: Sequence[Axis]) -> list[tuple[int, Monomial]]:
    """The number of elements of an array as a sum of products of widths."""
    out: list[tuple[int, Monomial]] = [(1, ())]
    for axis in axes:
        out = [
            (a * b, names + more) for a, names in out for b, more in expand(axis) if b
        ]
    return out


def polynomial(
    graph: Graph, tasks: tuple[str, ...], keys: Sequence[str]
) -> dict[Monomial, dict[str, int]]:
    """What each product of widths counts for, per key of `cost.key_of`."""
    out: dict[Monomial, dict[str, int]] = {}
    wanted = set(keys)
    for piece in pieces(graph):
        mine = [k for k in keys_of(piece, len(graph.tasks) > 1) if k in wanted]
        if not mine or not counts(piece, graph, tasks):
            continue
        for factor, names in times(piece.axes):
            row = out.setdefault(tuple(sorted(names)), {})
            for key in mine:
                unit = piece.units[key.partition("[")[0]]
                row[key] = row.get(key, 0) + factor * unit
    return out


def channel_savings(graph: Graph, tasks: tuple[str, ...], key: str) -> dict[str, int]:
    """What one channel of each free group of the full model saves.

    Args:
        graph: the graph.
        tasks: whose cost counts.
        key: of `cost.key_of`.

    Returns:
        Per free group.
    """
    meter = Meter(graph, tasks, (key,))
    return {g.name: meter.saving(g.name, g.size - 1)[key] for g in graph.free}


class Meter:
    """Amounts of resources at the widths so far, and what a change would save.

    The cost is expanded once into products of widths, like ones added up. With all
    other widths given, an amount is a polynomial in the width of one group, nearly
    always a line; its coefficients are kept until a neighbour changes.
    """

    def __init__(self, graph: Graph, tasks: tuple[str, ...], keys: Sequence[str]):
        self.keys = tuple(keys)
        self.widths = {g.name: g.size for g in graph.groups}
        self._of: dict[str, list[tuple[int, Monomial, tuple[int, ...]]]] = {}
        self._near: dict[str, set[str]] = {}
        self._lines: dict[str, list[tuple[int, list[int]]]] = {}
        totals = [0] * len(self.keys)
        for names, row in polynomial(graph, tasks, keys).items():
            row = tuple(row.get(key, 0) for key in self.keys)
            size = math.prod(self.widths[n] for n in names)
            totals = [t + size * unit for t, unit in zip(totals, row, strict=True)]
            for name, power in Counter(names).items():
                others = tuple(n for n in names if n != name)
                self._of.setdefault(name, []).append((power, others, row))
                self._near.setdefault(name, set()).update(others)
        self._totals = totals

    @property
    def totals(self) -> dict[str, int]:
        """The amount of each resource at the widths so far."""
        return dict(zip(self.keys, self._totals, strict=True))

    @property
    def amounts(self) -> list[int]:
        """The same in the order of the keys."""
        return self._totals

    def _line(self, name: str) -> list[tuple[int, list[int]]]:
        """Per power of the width of a group, what it counts for."""
        if name not in self._lines:
            found: dict[int, list[int]] = {}
            for power, others, row in self._of.get(name, ()):
                size = 1
                for other in others:
                    size *= self.widths[other]
                at = found.setdefault(power, [0] * len(row))
                for i, unit in enumerate(row):
                    at[i] += size * unit
            self._lines[name] = list(found.items())
        return self._lines[name]

    def saved(self, name: str, width: int) -> list[int]:
        """What falls away, in the order of the keys, at another width of a group."""
        now = self.widths[name]
        out = [0] * len(self.keys)
        for power, row in self._line(name):
            step = now - width if power == 1 else now**power - width**power
            for i, unit in enumerate(row):
                out[i] += step * unit
        return out

    def saving(self, name: str, width: int) -> dict[str, int]:
        """What each resource loses if the group falls to this width."""
        return dict(zip(self.keys, self.saved(name, width), strict=True))

    def set(self, name: str, width: int) -> None:
        """Give a group another width."""
        if width == self.widths[name]:
            return
        saved = self.saved(name, width)
        self._totals = [t - s for t, s in zip(self._totals, saved, strict=True)]
        self.widths[name] = width
        for other in self._near.get(name, ()):
            self._lines.pop(other, None)

    def copy(self) -> "Meter":
        """Another one at the same widths; what never changes is shared."""
        out = object.__new__(Meter)
        vars(out).update(vars(self))
        out.widths, out._lines = dict(self.widths), dict(self._lines)
        return out
