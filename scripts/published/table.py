"""The page of results: docs/zoo.md."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGES = ("jax", "flax", "transformers", "diffusers", "dm-haiku", "equimo")
PACKAGES = (*PACKAGES, "equinox", "penzai", "brax")
NAN = float("nan")


@dataclass(frozen=True)
class Checked:
    """A model that was looked at.

    `status` is "right", "refused" (by cutjax, with a reason), "absent" (its package is
    not there, or fails by itself) or "wrong" (a wrong result, or a crash).
    """

    name: str
    package: str
    status: str = "right"
    reason: str = ""

    @property
    def said(self) -> str:
        """Why there is no number."""
        return f"{self.status}: {self.reason}"


@dataclass(frozen=True)
class Row(Checked):
    """One line of the table."""

    groups: int = 0
    channels: int = 0
    pinned: int = 0
    prunable: float = NAN
    trace_ms: float = NAN
    removed: float = NAN
    masked: float = NAN
    narrow: float = NAN
    oracle: str = "no narrow class"


INTRO = """# Models that nobody here wrote

`scripts/zoo` writes this page: published model classes, made small by their own
configuration, with random parameters (scales and variances between 0.5 and 1.5, biases
not zero). Nothing is declared about any of them.

- *groups*, *channels*: what may be cut. *prunable*: the share of parameters that lie in
  arrays with at least one such group. *trace*: one warm `cutjax.trace`.
- *masked*: 40 % of every group over which no statistic runs is cut at random; the
  largest difference between the cut function and the full one with these channels zero,
  relative to the largest value of the output. *removed*: parameters that this removes.
- *narrow*: the independent oracle for LayerNorm, RMSNorm, GroupNorm and the like. Cut
  to the sizes of the same class configured narrower (half the width, half the heads,
  half the MLP; which channels stay is random), the cut parameters run in that class;
  the largest difference between it and the cut function. Constants that a class makes
  of its width (a table of sines, a factor sqrt(width)) are those of the full model.
  Where no statistic crosses a group and the class cannot be narrower, *masked* says it
  all.
- A difference above 1e-5 is wrong."""


def page(rows: Sequence[Row], seconds: float) -> str:
    """The whole page."""
    parts = [INTRO, f"**{totals(rows)}**", *table(rows), foot(seconds)]
    return "\n\n".join(parts) + "\n"


def totals(rows: Sequence[Row]) -> str:
    """One sentence that counts."""
    count = Counter(row.status for row in rows)
    narrow = [row.narrow for row in rows if row.narrow == row.narrow]
    masked = [row.masked for row in rows if row.masked == row.masked]
    said = [
        f"{len(rows)} models of {len({row.package for row in rows})} package(s)",
        f"{count['right']} right ({len(narrow)} of them against the narrow class too)",
        f"{count['refused']} refused",
        f"{count['wrong']} wrong",
    ]
    if count["absent"]:
        said.append(f"{count['absent']} could not be built")
    worst = f"largest difference {max([*masked, *narrow], default=NAN):.0e}"
    return ", ".join(said) + f"; {worst}."


def table(rows: Sequence[Row]) -> list[str]:
    """The table, and a list of what it has no number for."""
    head = (
        "| model | package | groups | channels | prunable | trace ms | removed "
        "| masked | narrow |\n|---|---|---|---|---|---|---|---|---|"
    )
    notes: list[str] = []
    lines = [line(row, notes) for row in rows]
    return ["\n".join([head, *lines]), *(["\n".join(notes)] if notes else [])]


def line(row: Row, notes: list[str]) -> str:
    """One line; a reason that does not fit goes to the notes."""

    def note(text: str) -> str:
        notes.append(f"{len(notes) + 1}. {row.name} ({row.package}): {text}")
        return f"({len(notes)})"

    if row.status != "right":
        said = row.status.upper() if row.status == "wrong" else row.status
        mark = f"{said} {note(row.said)}"
        return f"| {row.name} | {row.package} | | | | | | {mark} | |"
    narrow = error(row.narrow)
    if row.oracle != "narrow":
        plain = row.oracle == "no statistic"
        narrow = row.oracle if plain else f"none {note(row.oracle)}"
    cells = [
        *(row.name, row.package, row.groups, row.channels, f"{row.prunable:.1%}"),
        *(f"{row.trace_ms:.0f}", f"{row.removed:.0%}", error(row.masked), narrow),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def error(value: float) -> str:
    """A difference in two characters of precision, or that there is none."""
    return "equal" if value == 0 else f"{value:.0e}"


def foot(seconds: float) -> str:
    """Versions, machine, time."""
    found = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"Python {platform.python_version()}, {found}; {machine()}; "
        f"{seconds / 60:.0f} minutes, compiled at optimisation level 0."
    )


def version(name: str) -> str:
    """Of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(absent)"


def machine() -> str:
    """Processor and cores, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [text.partition(":")[2].strip() for text in lines if "model name" in text]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"
