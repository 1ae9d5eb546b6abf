"""Graphs for people: one line per group, and explanations in plain words."""

import math
from html import escape
from typing import Any

from cutjax.dims import Axis, Concat, Fixed, Leaf, Product, leaves
from cutjax.dot import listed, to_svg
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
    free, groups = graph.free, listed(graph)
    head = (
        f"{len(free)} groups to cut ({sum(g.size for g in free)} channels), "
        f"{len(groups) - len(free)} pinned; tasks: {', '.join(graph.tasks)}; "
        f"{cost.params:,} parameters, of which {100 * graph.prunable:.0f} % can go, "
        f"{cost.flops / 1e6:,.1f} MFLOPs for {_inputs(graph)}"
    )
    width = max((len(g.name) for g in groups), default=4)
    reach = max((len(_tasks(g, graph)) for g in groups), default=4)
    rows = [f"{'size':>5}  {'group':<{width}}  {'tasks':<{reach}}  members"]
    for g in groups:
        what = f"pinned: {g.pinned}" if g.pinned else _places(g)
        mark = " *" if g.notes and not g.pinned else ""
        tasks = _tasks(g, graph)
        rows.append(f"{g.size:>5}  {g.name:<{width}}  {tasks:<{reach}}  {what}{mark}")
    if any(g.notes and not g.pinned for g in groups):
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
    lines += [f"    {_member(m)}" for m in group.members]
    for verb, paths in _neighbours(graph, group.name).items():
        lines.append(f"  {verb}: {', '.join(paths)}")
    lines += [f"  note: {note}" for note in group.notes]
    if group.ordered and not group.pinned:
        lines.append(f"  in order: a constant tells them apart at {group.ordered}")
    return "\n".join(lines)


def _member(member: Any) -> str:
    shape = "" if isinstance(member.layout, Leaf) else f" ({layout(member.layout)})"
    return f"{member.place}{shape}" + (f", {member.tie}" if member.tie else "")


def _neighbours(graph: Any, name: str) -> dict[str, list[str]]:
    """Who makes and who reads the channels: kernels, or lines where there is none."""
    verbs = {"made by": "makes", "read by": "reads"}
    found = {
        verb: dict.fromkeys(
            term.path or f"`{term.line}`"
            for term in graph.terms
            if name in getattr(term, field)
        )
        for verb, field in verbs.items()
    }
    return {verb: list(paths) for verb, paths in found.items() if paths}


def _indent(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())


MOST_BOXES = 80
"""A picture of more groups than this is no longer looked at."""


def html(graph: Any) -> str:
    """What a notebook shows: the head line, a table, and the picture."""
    head, *_ = table(graph).splitlines()
    cells = "".join(_row(group, graph) for group in listed(graph))
    names = "".join(f"<th>{n}</th>" for n in ("channels", "group", "tasks", "lives in"))
    picture = (
        f'<div style="overflow-x:auto">{to_svg(graph)}</div>'
        if len(listed(graph)) <= MOST_BOXES
        else "<p>too many groups for a picture; see <code>graph.to_dot()</code></p>"
    )
    return (
        f"<p>{escape(head)}</p><details open><summary>groups</summary>"
        f"<table><tr>{names}</tr>{cells}</table></details>"
        f"<details><summary>who reads whom</summary>{picture}</details>"
    )


def _row(group: Any, graph: Any) -> str:
    what = f"<i>pinned: {escape(group.pinned)}</i>" if group.pinned else ""
    mark = " *" if group.notes and not group.pinned else ""
    cells = (
        str(group.size),
        f"<code>{escape(group.name)}</code>",
        escape(_tasks(group, graph)),
        what or f"<code>{escape(_places(group))}</code>{mark}",
    )
    title = escape("\n".join(map(_member, group.members)), quote=True)
    return f'<tr title="{title}">' + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"
