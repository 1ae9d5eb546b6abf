"""The page of what is asked beyond a cut: docs/zoo-beyond.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .table import NAN, Checked, machine

INTRO = """# Models that nobody here wrote: merged and refitted

`scripts/zoo --beyond` writes this page, of the models of [zoo.md](zoo.md) with the same
random parameters. A copy is put in a random order of channels, another gets every
parameter changed by up to a fifth. Differences are relative to the largest value of an
output; one above 1e-5 is wrong.

- *reordered*: the copy answers what the model answers. *found*: the share of channels
  whose place `merge.align` finds, by weights, and by activations on two batches (what
  never fires on a few rows cannot be told apart by them).
- *merged*: all channels shared with the reordered copy, each in its place: both answer
  as before. *beside*: with nothing shared with the changed copy; where groups allow it
  also with one network having the shared side for itself.
- *in part*: of how many groups some channels can be shared, others not
  (`merge.whole_groups` says why not of the rest). *fitted*: half of those shared with
  the changed copy; error of `least_squares` on the batches it is fitted to, in that of
  `average`.
- *readers*: how many `compensate` refits after 40 % of every group is cut at random;
  *as cut* and *refitted*: the error of the outputs on the calibration batches (norm
  of the difference over the norm). The model has no more than a few rows to offer, so
  that this says that it works, not how well."""


@dataclass(frozen=True)
class Row(Checked):
    """One line of the table."""

    reordered: float = NAN
    weights: float = NAN
    activations: float = NAN
    merged: float = NAN
    beside: float = NAN
    part: str = ""
    fitted: float = NAN
    readers: int = 0
    cut: float = NAN
    refitted: float = NAN


def page(rows: Sequence[Row], seconds: float) -> str:
    """The whole page."""
    head = (
        "| model | package | reordered | found, by weights | by activations | merged "
        "| beside | in part | fitted | readers | as cut | refitted |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    lines = [head, *map(line, rows)]
    foot = f"{machine()}; {seconds / 60:.0f} minutes, compiled at level 0."
    return "\n\n".join([INTRO, f"**{totals(rows)}**", "\n".join(lines), foot]) + "\n"


def totals(rows: Sequence[Row]) -> str:
    """One sentence that counts."""
    right = [row for row in rows if row.status == "right"]
    said = f"{len(rows)} models, {len(right)} right, {len(rows) - len(right)} not"
    if not right:
        return f"{said}."
    exact = [max(row.reordered, row.merged, row.beside) for row in right]
    part = [row.fitted for row in right if row.fitted == row.fitted]
    left = [row.refitted / row.cut for row in right if row.cut > 0]
    return (
        f"{said}; largest difference {max(exact):.0e}; the median of errors: by least "
        f"squares {np.median(part or [NAN]):.2g} of averaged, refitted "
        f"{np.median(left or [NAN]):.2g} of as cut."
    )


def line(row: Row) -> str:
    """One line."""
    if row.status != "right":
        return f"| {row.name} | {row.package} | {row.said} |" + " |" * 9
    shown = [f"{value:.0e}" if value else "equal" for value in exactly(row)]
    cells = [
        *(row.name, row.package, shown[0]),
        *(f"{row.weights:.0%}", f"{row.activations:.0%}", *shown[1:], row.part),
        f"{row.fitted:.2g}" if row.fitted == row.fitted else "",
        *(row.readers, f"{row.cut:.2g}", f"{row.refitted:.2g}"),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def exactly(row: Row) -> tuple[float, float, float]:
    """What must be nothing."""
    return row.reordered, row.merged, row.beside
