"""A net as coloured blocks in order of execution, before and after a cut."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import EngFormatter

from cutjax.cost import Cost
from cutjax.dims import Axis, Keep, count
from cutjax.errors import DataError
from cutjax.graph import Graph
from cutjax.plot import style
from cutjax.plot.layers import Layer, groups_of, layers, parts
from cutjax.shrink import needed

_WIDTH = 0.42  # of a block, in columns
_SIDE_BY_SIDE = 10  # columns; a deeper net has its two pictures one above the other


class Box(NamedTuple):
    """Where a block stands: left edge, middle and height, in channels."""

    x: float
    y: float
    height: float

    @property
    def top(self) -> float:
        """The upper edge."""
        return self.y + self.height / 2

    @property
    def low(self) -> float:
        """The lower edge."""
        return self.y - self.height / 2


class Scene(NamedTuple):
    """What a picture needs: layers, full boxes, kept widths, colours, and who lives."""

    found: dict[str, Layer]
    boxes: dict[str, Box]
    widths: Mapping[str, int]
    colours: Mapping[str, str]
    alive: frozenset[str]

    def box(self, path: str) -> Box:
        """The block at its kept width."""
        box, made = self.boxes[path], self.found[path].makes
        return box._replace(height=box.height * count(made, self.widths) / made.size)

    def colour(self, made: Axis) -> str:
        """Of the first group in what a layer makes."""
        return next((self.colours[n] for n in groups_of(made)), style.PINNED)


def net(
    graph: Graph,
    keep: Keep | None = None,
    *,
    tasks: Sequence[str] | str | None = None,
) -> Figure:
    """The net with its groups coloured, and what a cut leaves of it.

    Args:
        graph: the graph.
        keep: the kept channels; only the whole net is drawn, if not given.
        tasks: those that the compact model answers; all, if not given.

    Returns:
        A figure: a block per kernel, as high as it makes channels, with bands to the
        kernels that read them. Blocks of one colour are one group, cut alike; an arc
        ties those whose outputs are added. What is pinned is grey.

    Raises:
        DataError: the graph has no kernel to draw.
        KeepError: the keep does not fit the graph, or a task is unknown.
    """
    graph.check_keep(keep or {})
    chosen = graph.check_tasks(tasks)
    found = {layer.path: layer for layer in layers(graph)}
    if not found:
        raise DataError("nothing to draw; the graph has no kernel that mixes channels")
    colours = {g.name: style.PINNED for g in graph.groups}
    colours |= style.group_colours(g.name for g in graph.free)
    full = Scene(found, _place(list(found.values())), {}, colours, frozenset(found))
    cut = keep is not None or tasks is not None
    fig, axes = _panels(max(layer.column for layer in found.values()), cut)
    _picture(axes[0], full)
    _title(axes[0], "before", graph.cost(), graph.tasks)
    if cut:
        widths = {name: int(np.sum(mask)) for name, mask in (keep or {}).items()}
        alive = needed(graph, tasks) & frozenset(found)
        _picture(axes[1], full._replace(widths=widths, alive=alive))
        _title(axes[1], "after", graph.cost(keep, tasks=chosen), chosen)
    _legend(fig, graph, keep)
    return fig


def _panels(columns: int, cut: bool) -> tuple[Figure, list[Axes]]:
    width, height = 0.6 * columns + 0.9, 3.4
    if columns <= _SIDE_BY_SIDE:
        fig = style.figure(width * (1 + cut), height)
        return fig, fig.subplots(1, 1 + cut, squeeze=False).ravel().tolist()
    fig = style.figure(width, height * (1 + cut))
    return fig, fig.subplots(1 + cut, 1, squeeze=False).ravel().tolist()


def _place(found: Sequence[Layer]) -> dict[str, Box]:
    """Columns by depth; the blocks of a column above each other, around the middle."""
    columns: dict[int, list[Layer]] = {}
    for layer in found:
        columns.setdefault(layer.column, []).append(layer)
    tallest = max(sum(b.makes.size for b in stack) for stack in columns.values())
    gap, least = 0.1 * tallest, 0.012 * tallest
    boxes = {}
    for x, stack in columns.items():
        heights = [max(layer.makes.size, least) for layer in stack]
        top = (sum(heights) + gap * (len(stack) - 1)) / 2
        for layer, height in zip(stack, heights, strict=True):
            boxes[layer.path] = Box(x, top - height / 2, height)
            top -= height + gap
    return boxes


def _picture(ax: Axes, scene: Scene) -> None:
    low = min(box.low for box in scene.boxes.values())
    high = max(box.top for box in scene.boxes.values())
    for path, layer in scene.found.items():
        if path not in scene.alive:
            _ghost(ax, scene.boxes[path], "--")
            continue
        if scene.box(path) != scene.boxes[path]:
            _ghost(ax, scene.boxes[path], ":")
        _block(ax, layer, scene)
        for source in layer.sources:
            colour = scene.colour(scene.found[source].makes)
            _band(ax, scene.box(source), scene.box(path), colour)
        if not layer.sources and layer.column == 1:
            _input(ax, scene.box(path), 0.02 * (high - low))
        if layer.tied in scene.alive:
            tied = scene.box(layer.tied)
            _arc(ax, tied, scene.box(path), scene.colour(layer.makes), high - low)
    _name_ends(ax, scene)
    style.bare(ax)
    ax.set(xticks=[], yticks=[])
    ax.set_xlim(0.45, max(box.x for box in scene.boxes.values()) + 1.35)
    margin = 0.09 * (high - low)
    ax.set_ylim(low - margin, high + margin)


def _ghost(ax: Axes, box: Box, line: str) -> None:
    """The outline of what there was."""
    dash: dict[str, Any] = dict(
        ls=line, lw=0.8, edgecolor="#8A8A8A", facecolor="none", zorder=2
    )
    ax.add_patch(Rectangle((box.x, box.low), _WIDTH, box.height, **dash))


def _block(ax: Axes, layer: Layer, scene: Scene) -> None:
    """A block: concatenated groups above each other, products side by side."""
    box, total = scene.box(layer.path), count(layer.makes, scene.widths)
    top = box.top
    for part in parts(layer.makes):
        height = box.height * count(part, scene.widths) / max(total, 1)
        names = groups_of(part) or [""]
        each = _WIDTH / len(names)
        for i, name in enumerate(names):
            colour = scene.colours.get(name, style.PINNED)
            corner = box.x + i * each, top - height
            style_of: dict[str, Any] = dict(
                facecolor=colour, edgecolor=colour, lw=0.4, zorder=3
            )
            ax.add_patch(Rectangle(corner, each, height, **style_of))
        top -= height
    tallest = max(b.height for b in scene.boxes.values())
    if box.height > 0.09 * tallest:
        ink = style.ink_on(scene.colour(layer.makes))
        where: dict[str, Any] = dict(
            ha="center", va="center", fontsize=7.5, color=ink, zorder=4
        )
        ax.text(box.x + _WIDTH / 2, box.y, str(total), **where)


def _band(ax: Axes, a: Box, b: Box, colour: str) -> None:
    """From all that is made to the kernel that reads it."""
    x0, x1 = a.x + _WIDTH, b.x
    m = (x0 + x1) / 2
    points = [(x0, a.top), (m, a.top), (m, b.top), (x1, b.top), (x1, b.low)]
    points += [(m, b.low), (m, a.low), (x0, a.low), (x0, a.top)]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3]
    shape = Path(points, [*codes, Path.CLOSEPOLY])
    ax.add_patch(PathPatch(shape, facecolor=colour, alpha=0.28, lw=0, zorder=1))


def _input(ax: Axes, box: Box, height: float) -> None:
    _band(ax, Box(box.x - _WIDTH - 0.5, box.y, height), box, style.PINNED)


def _arc(ax: Axes, a: Box, b: Box, colour: str, span: float) -> None:
    """Around the blocks between two that are added, or straight within a column."""
    x0, x1 = a.x + _WIDTH / 2, b.x + _WIDTH / 2
    below = min(a.y, b.y) < -0.02 * span
    y0, y1 = (a.low, b.low) if below else (a.top, b.top)
    far = min(y0, y1) - 0.1 * span if below else max(y0, y1) + 0.16 * span
    points = [(x0, y0), (x0, far), (x1, far), (x1, y1)]
    if a.x == b.x:
        points = [(x0, a.low), (x0, a.low), (x1, b.top), (x1, b.top)]
    path = Path(points, [Path.MOVETO, *[Path.CURVE4] * 3])
    line: dict[str, Any] = dict(facecolor="none", edgecolor=colour, lw=1.8, zorder=2)
    ax.add_patch(PathPatch(path, **line))


def _name_ends(ax: Axes, scene: Scene) -> None:
    """The pinned blocks of the last column by name: the outputs."""
    short = style.short(scene.found)
    last = max(layer.column for layer in scene.found.values())
    for path, layer in scene.found.items():
        if layer.column != last or scene.colour(layer.makes) != style.PINNED:
            continue
        box = scene.boxes[path]
        ink = style.INK if path in scene.alive else "#8A8A8A"
        text = short[path].removeprefix("head_")
        where: dict[str, Any] = dict(va="center", fontsize=8, color=ink)
        ax.text(box.x + _WIDTH + 0.08, box.y, text, **where)


def _title(ax: Axes, when: str, cost: Cost, tasks: Sequence[str]) -> None:
    flops = EngFormatter("FLOPs", places=1)(cost.flops)
    text = f"{when}: {cost.params:,} parameters, {flops}, "
    text += f"{len(tasks)} task" + "s" * (len(tasks) > 1)
    ax.set_title(text, fontsize=9.5, loc="left")


def _legend(fig: Figure, graph: Graph, keep: Keep | None) -> None:
    names = [g.name for g in graph.free]
    colours, short = style.group_colours(names), style.short(names)
    handles = []
    for group in graph.free:
        kept = int(np.sum((keep or {}).get(group.name, np.ones(group.size, bool))))
        text = f"{style.cropped(short[group.name])}: {group.size}"
        text += f" → {kept}" if kept < group.size else ""
        handles.append(Patch(color=colours[group.name], label=text))
    longest = max((len(h.get_label()) for h in handles), default=0)
    fit = max(1, int(fig.get_figwidth() / (0.6 + 0.075 * longest)))
    rows = -(-len(handles) // fit)
    style_of: dict[str, Any] = dict(
        ncols=max(1, -(-len(handles) // max(rows, 1))), frameon=False
    )
    fig.legend(handles=handles, loc="outside lower center", fontsize=8, **style_of)
