"""Graphs for people: one line per group, and explanations in plain words."""

import math
from typing import Any

from cutjax.dims import Axis, Concat, Fixed, Leaf, Product, leaves
from cutjax.errors import KeepError, suggest


def layout(axis: Axis) -> str:
    """An axis in a few characters: `64`, `4·16`, `[32|16]`."""
    match axis:
        case Leaf(_, size) | Fixed(size):
            return str(size)
        case Product(parts):
            return "·".join(layout(p) for p in parts)
        case Concat(parts):
            return "[" + "|".join(layout(p) for p in parts) + "]"


def _places(group: Any, most: int = 3) -> str:
    shown = []
    for m in group.members[:most]:
        plain = isinstance(m.layout, Leaf)
        shown.append(f"{m.path}:{m.axis}" + ("" if plain else f"({layout(m.layout)})"))
    more = len(group.members) - most
    return ", ".join(shown) + (f" +{more} more" if more > 0 else "")


def _tasks(group: Any, graph: Any) -> str:
    return (
        "all" if len(group.tasks) == len(graph.tasks) else ",".join(group.tasks) or "-"
    )


def table(graph: Any) -> str:
    """One line per group: channels, tasks, name, members; pinned groups say why."""
    cost = graph.cost()
    free = graph.free
    head = (
        f"{len(free)} groups to cut ({sum(g.size for g in free)} channels), "
        f"{len(graph.groups) - len(free)} pinned; tasks: {', '.join(graph.tasks)}; "
        f"{cost.params:,} parameters, {cost.flops / 1e6:,.1f} MFLOPs for "
        f"{_inputs(graph)}"
    )
    width = max((len(g.name) for g in graph.groups), default=4)
    reach = max((len(_tasks(g, graph)) for g in graph.groups), default=4)
    rows = [f"{'size':>5}  {'group':<{width}}  {'tasks':<{reach}}  members"]
    for g in graph.groups:
        what = f"pinned: {g.pinned}" if g.pinned else _places(g)
        mark = " *" if g.notes and not g.pinned else ""
        tasks = _tasks(g, graph)
        rows.append(f"{g.size:>5}  {g.name:<{width}}  {tasks:<{reach}}  {what}{mark}")
    if any(g.notes and not g.pinned for g in graph.groups):
        rows.append("* a mean runs over these channels; see graph.explain(name)")
    return "\n".join([head, *rows])


def _inputs(graph: Any) -> str:
    return ", ".join(graph.inputs) or "no input"


def explain(graph: Any, name: str) -> str:
    """Why the channels of a group, or of a parameter's axes, are tied or pinned."""
    if name in graph:
        return _explain_group(graph, graph[name])
    paths = [p for p in graph.axes if p == name or p.endswith(f"/{name}")]
    named = [g for g in graph.groups if g.name.endswith(f"/{name}")]
    if len(named) == 1 and not paths:
        return _explain_group(graph, named[0])
    if len(paths) != 1:
        what = "no group or parameter" if not paths else "several parameters end in"
        known = paths or [*graph.axes, *(g.name for g in graph.groups)]
        raise KeepError(f"{what} {name!r}; {suggest(name, known)}")
    return _explain_path(graph, paths[0])


def _explain_path(graph: Any, path: str) -> str:
    shape = graph.shapes[path].shape
    lines = [f"{path} {list(shape)}, {math.prod(shape):,} parameters"]
    seen = set()
    for i, axis in enumerate(graph.axes[path]):
        names = list(dict.fromkeys(leaf.name for leaf in leaves(axis)))
        if not names:
            reason = axis.reason if isinstance(axis, Fixed) else ""
            lines.append(
                f"axis {i} ({layout(axis)}) stays whole" + f": {reason}" * bool(reason)
            )
        for name in names:
            lines.append(f"axis {i} ({layout(axis)}) holds {name!r}")
            if name not in seen:
                lines.append(_indent(_explain_group(graph, graph[name])))
            seen.add(name)
    return "\n".join(lines)


def _explain_group(graph: Any, group: Any) -> str:
    lines = [
        f"group {group.name!r}: {group.size} channels, tasks: {_tasks(group, graph)}"
    ]
    if group.pinned:
        lines.append(f"  pinned: {group.pinned}")
    lines.append("  lives in:")
    lines += [f"    {m.path}:{m.axis} ({layout(m.layout)})" for m in group.members]
    if group.ties:
        lines.append("  tied by:")
        lines += [f"    {tie}" for tie in group.ties]
    lines += [f"  note: {note}" for note in group.notes]
    return "\n".join(lines)


def _indent(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())
