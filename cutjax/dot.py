"""A graph as a picture: boxes per group, arrows per reader, in DOT and in SVG."""

from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

from cutjax.unify import WINDOW

FREE, PINNED, EDGE = "#dbe9f6", "#eeeeee", "#7a8aa0"
_WIDTH, _HEIGHT, _GAP = 150, 38, 44  # of a box, and between columns, in pixels


class Arrow(NamedTuple):
    """What reads one group to make another: kernels, or lines of code without one."""

    source: str
    target: str
    by: tuple[str, ...]


def listed(graph: Any) -> list[Any]:
    """All groups but the windows of convolutions, of which nobody expects channels."""
    return [g for g in graph.groups if not (g.pinned or "").startswith(WINDOW)]


def arrows(graph: Any) -> tuple[Arrow, ...]:
    """Who reads which group to make which other, in order of execution."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for term in graph.terms:
        for source in term.reads:
            for target in term.makes:
                found.setdefault((source, target), {})[term.path or term.line] = None
    return tuple(Arrow(*ends, tuple(by)) for ends, by in found.items())


def to_dot(graph: Any) -> str:
    """The graph in the DOT language: a box per group, an arrow per reader."""
    lines = ["digraph cutjax {", "  rankdir=LR;", "  node [shape=box, style=filled];"]
    for group in listed(graph):
        look = f'fillcolor="{PINNED if group.pinned else FREE}"'
        more = f"\npinned: {group.pinned}" if group.pinned else ""
        label = _quoted(f"{group.name}\n{group.size} channels{more}")
        lines.append(f"  {_quoted(group.name)} [label={label}, {look}];")
    for source, target, by in arrows(graph):
        label = _quoted("\n".join(by))
        lines.append(f"  {_quoted(source)} -> {_quoted(target)} [label={label}];")
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'


def to_svg(graph: Any) -> str:
    """The same as a picture, groups from left to right in order of execution."""
    edges = arrows(graph)
    spots = _spots(graph, edges)
    wide = max((x for x, _ in spots.values()), default=0) + _WIDTH + _GAP
    high = max((y for _, y in spots.values()), default=0) + 2 * _HEIGHT + 30
    marker = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" '
        f'markerHeight="6" orient="auto"><path d="M0 0L8 4L0 8z" fill="{EDGE}"/>'
        "</marker></defs>"
    )
    parts = [*_curves(edges, spots), *_boxes(graph, spots)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" '
        f'font-family="sans-serif" font-size="11">{marker}{"".join(parts)}</svg>'
    )


def _spots(graph: Any, edges: tuple[Arrow, ...]) -> dict[str, tuple[int, int]]:
    """Left upper corners: a column after all that was read to make the group first."""
    column: dict[str, int] = {}
    for source, target, _ in edges:
        start = column.setdefault(source, 0)
        column.setdefault(target, start + 1)
    taken: dict[int, int] = {}
    out = {}
    for group in listed(graph):
        at = column.get(group.name, 0)
        row = taken[at] = taken.get(at, -1) + 1
        out[group.name] = (12 + at * (_WIDTH + _GAP), 30 + row * (_HEIGHT + 16))
    return out


def _curves(edges: tuple[Arrow, ...], spots: dict) -> Iterator[str]:
    """Forwards from side to side; back to an earlier group from below to below."""
    for source, target, by in edges:
        (ax, ay), (bx, by_) = spots[source], spots[target]
        if bx > ax:
            x, y, z, v = ax + _WIDTH, ay + _HEIGHT // 2, bx, by_ + _HEIGHT // 2
            bend = f"C{x + _GAP} {y} {z - _GAP} {v} {z} {v}"
        else:
            x, y, z, v = (
                ax + _WIDTH // 2,
                ay + _HEIGHT,
                bx + _WIDTH // 2,
                by_ + _HEIGHT,
            )
            low = max(y, v) + 30
            bend = f"C{x} {low} {z} {low} {z} {v}"
        yield (
            f'<path d="M{x} {y}{bend}" fill="none" stroke="{EDGE}" '
            f'marker-end="url(#tip)"><title>{escape(", ".join(by))}</title></path>'
        )


def _boxes(graph: Any, spots: dict) -> Iterator[str]:
    for group in listed(graph):
        x, y = spots[group.name]
        fill = PINNED if group.pinned else FREE
        said = f"{group.name}: " + (group.pinned or f"{group.size} channels")
        yield (
            f"<g><title>{escape(said)}</title>"
            f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="4" '
            f'fill="{fill}" stroke="{EDGE}"/>'
            f'<text x="{x + 6}" y="{y + 15}">{escape(_short(group.name))}</text>'
            f'<text x="{x + 6}" y="{y + 30}" fill="#555">{group.size}'
            f"{' pinned' if group.pinned else ''}</text></g>"
        )


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]
