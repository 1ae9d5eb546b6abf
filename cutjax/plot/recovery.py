"""Lines per task over the steps of a recovery, the parent's level dashed."""

from matplotlib.figure import Figure

from cutjax.errors import DataError
from cutjax.plot import style
from cutjax.recover.report import Report, lost


def recovery(report: Report) -> Figure:
    """What every step brought per task, and what it took.

    Args:
        report: a parent and at least one step.

    Returns:
        A figure: a line per task, dashed at the parent's level; under the name of each
        step the mean points lost and the seconds.

    Raises:
        DataError: fewer than two rows.
    """
    if len(report.rows) < 2:
        raise DataError("nothing to draw; pass a parent and at least one step")
    parent, *rows = report.rows
    fig = style.figure(max(4.5, 1.3 * len(rows) + 1.5), 3.4)
    ax = fig.subplots()
    for task, colour in style.task_colours(list(parent.metrics)).items():
        _ = ax.axhline(parent.metrics[task], color=colour, linestyle="--", linewidth=1)
        places = [i for i, row in enumerate(rows) if task in row.metrics]
        values = [rows[i].metrics[task] for i in places]
        _ = ax.plot(places, values, "o-", color=colour, label=task, markersize=4)
    names = [
        f"{style.cropped(row.name, 18)}\n{lost(report, row.name):+.1f} lost"
        + (f"\n{row.seconds:.1f} s" if row.seconds else "")
        for row in rows
    ]
    _ = ax.set_xticks(range(len(rows)), names)
    ax.grid(axis="y", color=style.NOBODY, linewidth=0.6)
    _ = ax.set_title(
        f"percent per task after each step; dashed: {parent.name}",
        fontsize=9.5,
        loc="left",
    )
    style.bare(ax)
    _ = fig.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return fig
