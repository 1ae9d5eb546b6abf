"""What a picture of a net shows: its kernels, what each reads and makes, and where.

A graph knows groups and their members in order of execution, not the flow of data. The
flow follows from them: a kernel reads what the kernels before it made of its groups.
"""

from collections.abc import Iterable
from graphlib import TopologicalSorter
from typing import NamedTuple

from cutjax.dims import Axis, Concat, Product, leaves
from cutjax.graph import Graph


class Layer(NamedTuple):
    """A kernel: `reads` these groups, `makes` these channels, stands in `column`.

    `sources`: the layers whose channels it reads, the last ones before it. `tied`: the
    layer before it that makes the same channels (their outputs are added).
    """

    path: str
    reads: tuple[str, ...]
    makes: Axis
    column: int
    sources: tuple[str, ...]
    tied: str | None


def layers(graph: Graph) -> list[Layer]:
    """The kernels of a graph in order of execution; scales and biases are left out."""
    found: dict[str, Layer] = {}
    last: dict[str, list[Layer]] = {}
    for path in _in_order(graph):
        made = _made(graph, path)
        if made is None:
            continue
        mine = groups_of(made)
        reads = _reads(graph, path, mine)
        # A depthwise kernel reads the very channels that it makes.
        known = [last[name] for name in reads or mine if name in last]
        column = 1 + max((b.column for stack in known for b in stack), default=0)
        near = (max(stack, key=_column).path for stack in known)
        twins = [b for name in mine for b in last.get(name, ())] if reads else []
        found[path] = Layer(
            path=path,
            reads=reads,
            makes=made,
            column=column,
            sources=tuple(dict.fromkeys(near)),
            tied=max(reversed(twins), key=_column).path if twins else None,
        )
        for name in mine:
            last.setdefault(name, []).append(found[path])
    return list(found.values())


def _column(layer: Layer) -> int:
    return layer.column


def _in_order(graph: Graph) -> Iterable[str]:
    """Paths in order of execution: each group lists its own members in that order."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for group in graph.groups:
        paths = list(dict.fromkeys(member.path for member in group.members))
        for before, path in zip([None, *paths], paths, strict=False):
            sorter.add(path, *([before] if before else []))
    return sorter.static_order()


def _made(graph: Graph, path: str) -> Axis | None:
    """The channels that a kernel makes; None for a scale or a bias."""
    axes = graph.axes[path]
    if not _is_wide(axes) and not _alone(graph, axes):
        return None
    folder = path.rpartition("/")[0]
    beside = [p for p in graph.axes if p.rpartition("/")[0] == folder and p != path]
    if any(_within(axes, graph.axes[p]) for p in beside):
        return None
    holding = [axis for axis in axes if any(leaves(axis))]
    biases = [b for b in map(graph.axes.get, beside) if b and axes[-len(b) :] == b]
    named = [
        axis
        for i, axis in enumerate(axes)
        if any(
            f"{leaf.name}.".startswith(f"{path}:{i}.") and not graph[leaf.name].pinned
            for leaf in leaves(axis)
        )
    ]
    made = max(biases, key=len, default=()) or tuple(named) or tuple(holding[-1:])
    if not made:
        return None
    return made[0] if len(made) == 1 else Product(tuple(made))


def _is_wide(axes: tuple[Axis, ...]) -> bool:
    return sum(axis.size > 1 for axis in axes) >= 2


def _alone(graph: Graph, axes: tuple[Axis, ...]) -> bool:
    """Whether the channels of a vector are in no kernel, but only added up."""
    names = {leaf.name for axis in axes for leaf in leaves(axis)}
    members = {m.path for n in names if not graph[n].pinned for m in graph[n].members}
    return bool(members) and not any(_is_wide(graph.axes[p]) for p in members)


def _within(bias: tuple[Axis, ...], kernel: tuple[Axis, ...]) -> bool:
    """Whether a longer array beside this one has all of its axes, in order."""
    rest = iter(kernel)
    return len(bias) < len(kernel) and all(axis in rest for axis in bias)


def _reads(graph: Graph, path: str, mine: list[str]) -> tuple[str, ...]:
    every = (leaf.name for axis in graph.axes[path] for leaf in leaves(axis))
    return tuple(dict.fromkeys(name for name in every if name not in mine))


def parts(axis: Axis) -> tuple[Axis, ...]:
    """What lies end to end in an axis: itself, unless it is a concatenation."""
    return axis.parts if isinstance(axis, Concat) else (axis,)


def groups_of(axis: Axis) -> list[str]:
    """The names of the groups in an axis, in order of position."""
    return list(dict.fromkeys(leaf.name for leaf in leaves(axis)))
