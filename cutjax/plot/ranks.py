"""Scores as a picture: which task ranks which channels high."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.stats import rankdata

from cutjax.dims import Keep
from cutjax.errors import DataError
from cutjax.graph import Graph
from cutjax.plot import style

MAP = "cividis"
_CROWD = 12  # more groups than this are drawn smaller, the tasks named in the title


def scores(
    scores: Mapping[str, Mapping[str, np.ndarray]],
    graph: Graph,
    keep: Keep | None = None,
) -> Figure:
    """Every channel of every free group, coloured by its rank within each task.

    Args:
        scores: per task and group, f32[n]; higher is kept.
        graph: the graph.
        keep: what a plan keeps; the rest is hatched.

    Returns:
        A figure: a row per group, in it a line per task and a cell per channel. Ranks
        run over all channels of a task, so a dark row is a group that may be cut deep.
        Within a group kept channels come first, then those that all tasks rank high:
        where the lines of a group differ, the tasks want different channels.

    Raises:
        DataError: no scores, or no free group.
        KeepError: the keep does not fit the graph.
    """
    names = [g.name for g in graph.free]
    if not scores or not names:
        raise DataError("nothing to draw; pass the scores that saliency returned")
    graph.check_keep(keep or {})
    ranks = _ranks(scores, names)
    crowded = len(names) > _CROWD
    height = len(scores) * (0.07 if crowded else 0.155) + 0.1
    fig = style.figure(8.5, 0.9 + height * len(names))
    axes = fig.subplots(len(names), 1, squeeze=False)[:, 0]
    short = style.short(names)
    for ax, name in zip(axes, names, strict=True):
        mask = np.asarray((keep or {}).get(name, np.ones(graph[name].size, bool)))
        _draw(ax, ranks[name], mask)
        label = style.cropped(short[name])
        where: dict[str, Any] = dict(
            rotation=0, ha="right", va="center", fontsize=8, labelpad=4
        )
        ax.set_ylabel(label, **where)
        _sides(ax, mask, () if crowded else tuple(scores))
    for ax in axes if not crowded else ():
        ax.yaxis.set_label_coords(-0.115, 0.5)
    text = "rank of every channel" + ("; hatched: cut" if keep else "")
    text += f"; lines: {', '.join(scores)}" if crowded else ""
    axes[0].set_title(text, fontsize=9.5, loc="left")
    _bar(fig, axes)
    return fig


def _ranks(
    scores: Mapping[str, Mapping[str, np.ndarray]], names: list[str]
) -> dict[str, np.ndarray]:
    """Per group, the rank of each channel among all of its task, from 0 to 1."""
    ends = np.cumsum([len(next(iter(scores.values()))[n]) for n in names])
    rows = [rankdata(np.concatenate([s[n] for n in names])) for s in scores.values()]
    ranks = (np.stack(rows) - 1) / max(ends[-1] - 1, 1)
    return dict(zip(names, np.split(ranks, ends[:-1], axis=1), strict=True))


def _draw(ax: Axes, ranks: Float[np.ndarray, "tasks n"], mask: np.ndarray) -> None:
    order = np.lexsort((-ranks.mean(0), ~mask))
    tasks, n = ranks.shape
    ax.imshow(
        ranks[:, order],
        cmap=MAP,
        vmin=0,
        vmax=1,
        aspect="auto",
        interpolation="nearest",
        extent=(0, n, tasks, 0),
    )
    for line in range(1, tasks):
        ax.axhline(line, color="white", lw=0.8)
    kept = int(mask.sum())
    if kept < n:
        style_of: dict[str, Any] = dict(
            facecolor="white", edgecolor="#777777", lw=0, hatch="////"
        )
        ax.add_patch(Rectangle((kept, 0), n - kept, tasks, alpha=0.55, **style_of))
        ax.axvline(kept, color="black", lw=2)


def _sides(ax: Axes, mask: np.ndarray, tasks: tuple[str, ...]) -> None:
    """The tasks on the left, the widths on the right."""
    style.bare(ax)
    ax.set_xticks([])
    ax.set_yticks(np.arange(len(tasks)) + 0.5, tasks, fontsize=6.5)
    kept, n = int(mask.sum()), len(mask)
    text = f"{kept} of {n}" if kept < n else f"{n}"
    ax.text(1.008, 0.5, text, transform=ax.transAxes, va="center", fontsize=8)


def _bar(fig: Figure, axes: np.ndarray) -> None:
    bar = fig.colorbar(
        ScalarMappable(cmap=colormaps[MAP]),
        ax=list(axes),
        location="bottom",
        shrink=0.4,
        aspect=40,
        pad=0.02,
    )
    bar.set_ticks([0, 1], labels=["lowest rank", "highest rank of the task"])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)
