"""The page's tables."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from rivalry.book import Row
from rivalry.figures import AFTER, BEFORE, SIDES, Figure, of

WHENS = {
    "cut": "as cut",
    "re_estimated": "BatchNorm re-estimated",
    "compensated": "compensated",
    "distil": "{steps} steps, distil",
    "both": "{steps} steps, both",
    "labels": "{steps} steps, labels",
}

MOMENTS = {
    "as cut": (("cut",), ("cut",)),
    "before training": (("compensated",), ("re_estimated",)),
    "fine-tuned without labels": (("distil",), ("distil",)),
    "fine-tuned, each by its best loss": (("distil", "both"), AFTER),
}
"""What of cutjax is held to what of Torch-Pruning. The best loss is the best on test:
it favours the side with more losses, Torch-Pruning."""


class Duel(NamedTuple):
    """Both sides at a moment."""

    when: str
    ours: Figure
    theirs: Figure


def duels(figures: Iterable[Figure]) -> list[Duel]:
    """Every moment that both sides have reached."""
    figures, out = list(figures), []
    for net, factor in dict.fromkeys((f.net, f.factor) for f in figures):
        here = of(figures, net=net, factor=factor)
        for moment, (ours, theirs) in MOMENTS.items():
            a = [f for f in of(here, side="ours") if f.when in ours]
            b = [f for f in of(here, side="theirs") if f.when in theirs]
            if a and b:
                out.append(Duel(moment, max(a, key=_mean), max(b, key=_mean)))
    return out


def _mean(figure: Figure) -> float:
    return figure.mean


def duel_line(duel: Duel) -> str:
    """A line of the verdict."""
    a, b = duel.ours, duel.theirs
    margin, spread = a.mean - b.mean, math.hypot(a.spread, b.spread)
    said = "cutjax" if margin > spread else "Torch-Pruning"
    said = "even" if abs(margin) <= spread else said
    said = "one seed" if math.isnan(spread) else said
    cells = (a.net, f"{a.factor:g}", duel.when, a.said, b.said, f"{margin:+.2f}", said)
    return f"| {' | '.join(cells)} |"


def finals(figures: list[Figure]) -> list[str]:
    """Every moment on test."""
    lines = ["### On test", ""]
    lines += [
        "| x fewer | | method | when | test % | really fewer | parameters | rate |"
    ]
    lines += ["|---:|---|---|---|---:|---:|---:|---|"]
    moments = (*BEFORE, *AFTER)
    order = sorted(figures, key=lambda f: (f.factor, f.side, moments.index(f.when)))
    for f in order:
        when = WHENS[f.when].format(steps=f.steps)
        cells = (f"{f.factor:g}", SIDES[f.side], f.method, when, f.said)
        more = (f"{f.fewer:.3f}", f"{f.params / 1e3:.0f} k", f.how)
        lines.append(f"| {' | '.join((*cells, *more))} |")
    return lines if figures else []


def choices(rows: list[Row]) -> list[str]:
    """What was tried by fine-tuning, on validation."""
    lines = ["### Chosen by fine-tuning, on validation (seed 0)", ""]
    lines += ["| x fewer | | method | loss | rate | BatchNorm | validation % |"]
    lines += ["|---:|---|---|---|---:|---|---:|"]
    tuned = [row for row in rows if row["stage"] == "tuned"]
    keys = ("side", "loss", "rate", "method")
    for row in sorted(tuned, key=lambda row: tuple(str(row[k]) for k in keys)):
        cells = (f"{row['factor']:g}", SIDES[row["side"]], row["method"], row["loss"])
        moved = row.get("statistics", "moving")
        more = (f"{row['rate']:g}", moved, f"{row['validation']:.2f}")
        lines.append(f"| {' | '.join((*cells, *more))} |")
    return lines if tuned else []


def screened(rows: list[Row]) -> list[str]:
    """Every method as cut, on some validation images."""
    lines = ["### Before any training, on 500 validation images (seed 0)", ""]
    lines += ["| x fewer | | method | as cut | re-estimated | compensated | really |"]
    lines += ["|---:|---|---|---:|---:|---:|---:|"]
    found = [row for row in rows if row["stage"] == "screen"]
    best = {id(row): max(row.get(when, 0) for when in BEFORE) for row in found}
    for row in sorted(found, key=lambda row: (row["side"], -best[id(row)])):
        values = [f"{row[w]:.1f}" if w in row else "–" for w in BEFORE]
        cells = (f"{row['factor']:g}", SIDES[row["side"]], row["method"], *values)
        lines.append(f"| {' | '.join(cells)} | {row['full_macs'] / row['macs']:.3f} |")
    return lines if found else []
