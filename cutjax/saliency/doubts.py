"""Warnings of scores that say little: of too few data, or of a loss without slope."""

from collections.abc import Mapping
from typing import NamedTuple

from cutjax.errors import warn
from cutjax.saliency.criterion import Criterion, Measure, Problem, Scores
from cutjax.saliency.moments import MOMENTS
from cutjax.saliency.seen import GATES, WEIGHTS, Seen

HINTS = {
    "gradient": "Are its targets the network's own answers? Give labels, or score by "
    "joint, which needs none",
    "curvature": "Are its outputs constant, or beyond doubt?",
}


class Read(NamedTuple):
    """What a reader reads of a group: so many rows of each example, and channels."""

    group: str
    rows: int
    channels: int


def reads_of(seen: Seen) -> set[Read]:
    """The readers with a kernel, of each group."""
    return {Read(g, *v.shape[1:]) for (_, g), v in seen.inputs.items()}


def warn_of_few(
    reads: set[Read], criteria: Mapping[str, Criterion], examples: int
) -> None:
    """Warn where second moments of fewer rows than channels are taken.

    Channels beyond their rank look as if the others could rebuild them.

    Args:
        reads: see `Read`.
        criteria: by name; only those of second moments count.
        examples: how many were seen.
    """
    names = [name for name, c in criteria.items() if c.measure == MOMENTS]
    few = {r for r in reads if r.rows * examples < r.channels}
    if not names or not few:
        return
    worst = max(few, key=lambda r: (r.channels, r.group, -r.rows))
    others = len({r.group for r in few}) - 1
    more = f" (and {others} more groups have too few)" if others else ""
    warn(
        f"saliency: group {worst.group!r} has {worst.channels} channels but "
        f"{worst.rows * examples} rows of data{more}; {', '.join(names)} cannot tell "
        "what further channels add, and scores them as nearly free: pass more "
        "calibration data, or score by fisher",
    )


def warn_of_zeros(
    problem: Problem, name: str, measure: Measure | None, scores: Mapping[str, Scores]
) -> None:
    """Warn of a task whose scores by derivatives of its loss are all zero.

    Args:
        problem: the graph and its tasks.
        name: of the criterion.
        measure: what it was measured by.
        scores: by task and group.
    """
    if measure is None or not (measure == MOMENTS or measure.needs & {GATES, WEIGHTS}):
        return
    what = "curvature" if measure == MOMENTS else "gradient"
    for task, found in scores.items():
        own = [found[g.name] for g in problem.graph.free if task in g.tasks]
        if own and not any(v.any() for v in own):
            warn(
                f"saliency: the loss of task {task!r} has no {what} on this data: all "
                f"scores of {name!r} are 0. {HINTS[what]}"
            )
