"""How far tasks agree along the network: where shared channels end."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from cutjax.agreement import agreement as agree
from cutjax.dims import Keep
from cutjax.errors import DataError
from cutjax.plot import style

_LINES = 6  # more pairs of tasks than this are drawn as a band


def agreement(keeps: Mapping[str, Keep]) -> Figure:
    """Agreement of the tasks' keeps per group, in order of execution.

    Args:
        keeps: per task, what a plan for that task alone keeps; groups in the order of
            the graph, as `plan` returns them.

    Returns:
        A figure: above, intersection over union of all tasks and of every two; below,
        shares of channels that all tasks keep, several, one alone, or nobody. Where
        the lines fall the tasks part: the watershed.

    Raises:
        DataError: fewer than two tasks, or no group.

    Reference:
        DiSparse (CVPR 2022), section 4.4 and figure 5.
    """
    if len(keeps) < 2 or not next(iter(keeps.values())):
        raise DataError("agreement takes the keeps of two tasks or more, with a group")
    found = agree(keeps)
    names = [style.cropped(name) for name in style.short(found).values()]
    at = np.arange(len(names))
    fig = style.figure(max(4.5, 1.5 + 0.32 * len(names)), 4.4)
    upper, lower = fig.subplots(2, 1, sharex=True, height_ratios=(1.2, 1))
    every = next(iter(found.values())).pairs
    pairs = {p: [a.pairs[p] for a in found.values()] for p in every}
    if len(pairs) <= _LINES and len(keeps) > 2:
        for i, ((a, b), values) in enumerate(pairs.items()):
            colour = style.GROUPS[i % len(style.GROUPS)]
            upper.plot(at, values, color=colour, lw=1, label=f"{a}, {b}")
    elif len(keeps) > 2:
        rows = np.array(list(pairs.values()))
        band = (rows.min(0), rows.max(0))
        upper.fill_between(at, *band, color=style.NOBODY, label="pairs of tasks")
    label = "all tasks" if len(keeps) > 2 else ", ".join(keeps)
    overall = [a.iou for a in found.values()]
    upper.plot(at, overall, color="black", lw=2, marker="o", ms=3, label=label)
    upper.set_ylim(0, 1.03)
    upper.set_title("agreement of tasks (IoU of channels)", fontsize=9.5, loc="left")
    _votes(lower, at, [a.votes for a in found.values()])
    lower.set_xticks(at, names, rotation=60, ha="right", fontsize=7.5)
    for ax in (upper, lower):
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=7.5)
        ax.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def _votes(ax, at: np.ndarray, votes: list[tuple[int, ...]]) -> None:
    """Stacked shares of channels by the number of tasks that keep them."""
    counts = np.array(votes, float)
    shares = counts / counts.sum(1, keepdims=True)
    parts = [("all", style.SHARED, shares[:, -1])]
    if shares.shape[1] > 3:
        parts.append(("several", style.GROUPS[0], shares[:, 2:-1].sum(1)))
    parts.append(("one alone", style.GROUPS[1], shares[:, 1]))
    parts.append(("nobody", style.NOBODY, shares[:, 0]))
    bottom = np.zeros(len(at))
    for label, colour, height in parts:
        ax.bar(at, height, 0.8, bottom=bottom, color=colour, label=label)
        bottom += height
    ax.set_ylim(0, 1)
    ax.set_title("channels by the tasks that keep them", fontsize=9.5, loc="left")
