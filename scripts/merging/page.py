"""docs/merging.md, from the results."""

import numpy as np

PAGE = """# Two networks as one

Two networks of one architecture, one trained on five of ten classes, one on the others,
from different starts, are merged without any training by 1,000 calibration images of
all ten classes. Labels are unseen, but for the scores of the regrouping.
`scripts/merges` makes this page. Percent of the test images, mean and standard
deviation over seeds: among all ten classes (`joint`: the largest logit of both heads),
and within each network's five. Cost: multiply-adds of both tasks, and of one, over
those of one network. Averages and RegMean get new statistics of BatchNorm. All that was
tried is shown; nothing was chosen.
"""

ABOUT = {
    "mnist": """## MNIST, 0-4 and 5-9

Four 3x3 convolutions of 32, 32, 64 and 64 channels with BatchNorm; 12 epochs of some
3,000 images each; 2,000 test images. {seeds}
""",
    "cifar": """## CIFAR-10 (through JPEG), first and last five classes

A ResNet of 64, 128 and 256 channels, a block of two convolutions per width, the stem of
stride 2; 4 epochs of 23,500 images and their mirror images each, which is what trains
in half an hour on a core; every second test image, 5,000. {seeds}
""",
}

HEAD = """
| shared channels | kernels | joint | low five | high five | cost, both | cost, one |
|---|---|---|---|---|---|---|
"""


def page(rows: list[dict]) -> str:
    """The page, from all rows."""
    parts = [PAGE]
    for name, about in ABOUT.items():
        its = [row for row in rows if row.get("data") == name]
        if its:
            seeds = len({row["seed"] for row in its})
            said = f"{seeds} seeds." if seeds > 1 else "One seed."
            parts += [about.format(seeds=said), HEAD.lstrip("\n") + table(its)]
    return "\n".join(parts)


def table(rows: list[dict]) -> str:
    """A line per sharing and way to make kernels."""
    cells: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        cells.setdefault((row["shared"], row["kernels"]), []).append(row)
    lines = []
    for (shared, made), found in cells.items():
        accuracy = [said(found, name) for name in ("joint", "low", "high")]
        cost = [
            f"{np.mean([r[k] for r in found]):.2f}" for k in ("both_cost", "one_cost")
        ]
        lines.append(f"| {' | '.join([shared, made, *accuracy, *cost])} |\n")
    return "".join(lines)


def said(rows: list[dict], name: str) -> str:
    """Mean and spread of a figure."""
    values = [row[name] for row in rows]
    spread = f" ± {np.std(values):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"
