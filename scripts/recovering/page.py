"""docs/recovery.md and its pictures, made of the results alone."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

Row = dict[str, Any]
STEPS = ("cut", "compensated", "in rounds", "distilled", "fine-tuned")
LIMITS = {
    "set_cards": {0.05: (0.5, 0.2, 0.0), 0.02: (2.0, 0.3, None), 0.01: (5.0, 1.0, 0.5)},
    "morpho": {
        **{0.5: (0.5, None, None), 0.32: (2.0, 0.2, 0.0)},
        **{0.2: (5.0, 0.3, None), 0.1: (None, 1.0, 0.5)},
    },
}
LIMITS["digits"] = LIMITS["morpho"]
"""What was aimed at: without training, distilled, fine-tuned."""
GOAL = {"compensated": 0, "in rounds": 0, "distilled": 1, "fine-tuned": 2}

HEAD = """# What every step of a recovery brings

`scripts/recovery` writes this page from `runs/recovery/results.jsonl`; no number here
was typed by hand. Points of test accuracy lost against the parent, the mean over all
four tasks (percent of labels; for numbers percent of variance explained), ± its spread
over seeds, which draw the order of training and the examples of fine-tuning. One parent
per data set, trained to its plateau. *budget*: share of the trunk's parameters. Without
training nothing is drawn: the whole calibration split is used, 1,000 examples or more.

- *cut*: channels of the default plan (joint scores) are gone, nothing else.
- *compensated*: `cj.compensate` on the calibration examples; no labels, no training.
- *in rounds*: `cutjax.recover.gradually`: scoring what is left, cutting at most a
  quarter of it, compensating, and again; no training. Seconds are of all rounds so far.
- *distilled*: the better of both by validation data, then learns the parent's answers
  to the training images, without labels, tasks balanced by uncertainty, after
  `recover.settle`; where answers are numbers (Morpho), BatchNorm's statistics stay in
  the last third of the epochs.
- *fine-tuned*: after that a tenth of the parent's training steps, with labels too;
  BatchNorm's statistics stay, the best of start and end by validation data.

*goal*: what issue 5 asked for at most; bold where it was met by the mean.
"""


def write(rows: Iterable[Row], docs: Path) -> list[Path]:
    """Write the page and a picture per data set; returns their paths."""
    rows = list(rows)
    parents = {r["data"]: r for r in rows if r["key"].endswith("|parent")}
    figures = [r for r in rows if "step" in r]
    if not figures:
        raise SystemExit("no figure yet; run scripts/recovery first")
    docs.mkdir(parents=True, exist_ok=True)
    parts, written = [HEAD], []
    for name, parent in parents.items():
        here = [r for r in figures if r["data"] == name]
        if here:
            picture = docs / f"recovery_{name}.png"
            draw(here, parent, picture)
            written.append(picture)
            parts.append(section(name, parent, here, picture.name))
    page = docs / "recovery.md"
    page.write_text("\n".join(parts).rstrip() + "\n")
    return [page, *written]


def section(name: str, parent: Row, rows: list[Row], picture: str) -> str:
    """A data set's tables."""
    scores = ", ".join(f"{t} {v:.1f}" for t, v in parent["test"].items())
    lines = [
        *(f"## {name}", ""),
        f"Parent: {parent['trunk']:,} parameters in the trunk, "
        f"{parent['flops'] / 1e6:.1f} MFLOPs, {parent['steps']:,} steps; {scores}.",
        *("", f"![{name}]({picture})", ""),
        "| budget | step | points lost | goal | worst task | FLOPs | seconds | seeds |",
        "|---:|---|---:|---:|---|---:|---:|---:|",
    ]
    for budget in sorted({r["budget"] for r in rows}, reverse=True):
        for step in STEPS:
            found = [r for r in rows if (r["budget"], r["step"]) == (budget, step)]
            if found:
                lines.append(line(name, budget, step, found, parent))
    return "\n".join([*lines, ""])


def line(name: str, budget: float, step: str, found: list[Row], parent: Row) -> str:
    """One step at one budget, over seeds."""
    lost = np.array(
        [[parent["test"][t] - v for t, v in r["test"].items()] for r in found]
    )
    means, tasks = lost.mean(1), list(found[0]["test"])
    spread = f" ± {means.std(ddof=1):.2f}" if len(means) > 1 else ""
    limits = LIMITS[name].get(budget, ())
    goal = limits[GOAL[step]] if step in GOAL and limits else None
    shown = f"{means.mean():.2f}{spread}"
    if goal is not None and means.mean() <= goal:
        shown = f"**{shown}**"
    worst = int(lost.mean(0).argmax())
    clocks = [r["seconds"] for r in found if r["seconds"] is not None]
    seconds = f"{np.mean(clocks):.0f}" if clocks else ""
    return (
        f"| {budget:g} | {step} | {shown} | {'' if goal is None else goal} "
        f"| {tasks[worst]} {lost.mean(0)[worst]:.1f} "
        f"| {np.mean([r['flops'] for r in found]) / parent['flops']:.2f} "
        f"| {seconds} | {len(found)} |"
    )


def draw(rows: list[Row], parent: Row, path: Path) -> None:
    """Points lost over budgets, a line per step."""
    fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for step in STEPS:
        of: dict[float, list[float]] = {}
        for r in rows:
            if r["step"] == step:
                lost = [parent["test"][t] - v for t, v in r["test"].items()]
                of.setdefault(r["budget"], []).append(float(np.mean(lost)))
        if of:
            x = sorted(of)
            ax.plot(x, [max(np.mean(of[b]), 0.01) for b in x], "o-", label=step)
    ax.set(xscale="log", yscale="log", xlabel="trunk's parameters left")
    ax.set_ylabel("points lost, mean over tasks")
    ax.set_xticks(sorted({r["budget"] for r in rows}))
    ax.set_xticklabels([f"{b:g}" for b in sorted({r["budget"] for r in rows})])
    ax.minorticks_off()
    ax.legend(frameon=False)
    fig.savefig(path, dpi=120)
    plt.close(fig)
