"""`python -m rivalry.page OUT DOCS`: docs/rivals.md, made of the results alone."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from studies import store

from rivalry import protocol, tables
from rivalry.book import Row
from rivalry.figures import SIDES, Figure, of, read
from rivalry.protocol import NETS

HEAD = """# Beside Torch-Pruning, on published networks

`scripts/rivals` writes this page from `runs/rivals/results.jsonl`; no number here was
typed by hand. {machine}

- Networks: ResNet-20 and ResNet-56 (He et al. 2016, section 4.2, skips without
  parameters) with published CIFAR-10 weights, read from npz into Flax and into PyTorch;
  the logits of both agree. Images: CIFAR-10 *as JPEG*, which costs the parents about
  ten points; accuracy is in percent of all 10,000 test images unless said.
- *x fewer*: multiply-adds of 3x3 convolutions and classifier, from the widths, by one
  function for both. cutjax solves for it; Torch-Pruning takes a pruning ratio, for
  which the least one that fits is found by bisection. Torch-Pruning has no rule for a
  padded skip (it takes it for elementwise and couples the wrong channels), so in
  PyTorch the skip is a 1x1 convolution of zeros and ones: the same function, with
  widths of stages that are free of each other; its work is not counted.
- Methods of Torch-Pruning: criterion / scope (`local`, `global`, `isomorphic`) / form
  (`all`, or `inner`: the residual stream stays whole). Its Hessian is given the mean
  over all examples; `accumulate_grad` of 1.6.1 itself keeps only the last one. Methods
  of cutjax: criterion / allocation.
- Both score on the same {calibration} training images and choose on the same
  {validation} others, at {first}x: the method (the best after fine-tuning at
  {middle:g}, of the best variants before it of so many criteria:
  {tried}),
  then for each loss the learning rate, one whose neighbours among {rates}
  are worse (*both* of Torch-Pruning takes that of *distil*), for cutjax with the
  statistics of BatchNorm frozen, and moving after `recover.settle` (*settled*;
  *moving*: without it, tried before there was one).
- Fine-tuning: the same images once, batches of {batch}, AdamW, one cycle. *labels*:
  cross entropy. *distil*: the parent's answers (temperature {temperature:g}), no
  labels. *both*: their sum. cutjax starts compensated, Torch-Pruning with BatchNorm
  re-estimated.
- *±*: standard deviation over seeds (calibration images, images to train on).
"""


def write(rows: Iterable[Row], docs: Path) -> Path:
    """Write the page.

    Args:
        rows: of results.jsonl.
        docs: the folder.

    Returns:
        What was written.

    Raises:
        SystemExit: there is nothing to write about.
    """
    rows = list(rows)
    parents = {(r["net"], r["side"]): r for r in rows if r["stage"] == "parent"}
    if not parents:
        raise SystemExit("no figure yet; run scripts/rivals first")
    figures = read(rows)
    parts = [_head(parents), _verdict(figures)]
    for net in NETS:
        if any(name == net for name, _ in parents):
            here = [row for row in rows if row["net"] == net]
            parts.append(_of_net(net, here, of(figures, net=net), parents))
        else:
            parts.append(f"## {net}\n\nNot run yet; `scripts/rivals` continues.\n")
    docs.mkdir(parents=True, exist_ok=True)
    page = docs / "rivals.md"
    page.write_text("\n".join(parts).rstrip() + "\n")
    return page


def _head(parents: dict[tuple[str, str], Row]) -> str:
    machines = dict.fromkeys(row["machine"] for row in parents.values())
    return HEAD.format(
        machine=f"Machine: {'; '.join(machines)}.",
        calibration=protocol.CALIBRATION,
        validation=f"{protocol.VALIDATION:,}",
        tried=_tried(),
        first=protocol.FACTORS[0],
        rates=", ".join(f"{rate:g}" for rate in protocol.RATES),
        middle=protocol.MIDDLE,
        batch=protocol.BATCH,
        temperature=protocol.TEMPERATURE,
    )


def _tried() -> str:
    said = []
    for net, spec in NETS.items():
        each = (
            f"{spec.tried[side]} of {label}"
            if side in spec.tried
            else f"{label} as on {spec.like}"
            for side, label in SIDES.items()
        )
        said.append(f"{net} {', '.join(each)}")
    return "; ".join(said)


def _verdict(figures: list[Figure]) -> str:
    """Who keeps more: computed, seed by seed, at each moment."""
    lines = ["## Who keeps more", ""]
    lines += [
        "Test accuracy, and how many points cutjax has more; *even*: within the",
        "spread, the root of the sum of both variances over seeds. The best loss is",
        "the best on test, of two for cutjax, of three for Torch-Pruning.",
        "",
    ]
    lines += ["| network | x fewer | when | cutjax | Torch-Pruning | points | |"]
    lines += ["|---|---:|---|---:|---:|---:|---|"]
    for duel in tables.duels(figures):
        lines.append(tables.duel_line(duel))
    return "\n".join([*lines, ""])


def _of_net(
    net: str,
    rows: list[Row],
    figures: list[Figure],
    parents: dict[tuple[str, str], Row],
) -> str:
    parts = [f"## {net}", "", _parents(net, parents), ""]
    found: list[Callable[[], list[str]]] = [
        lambda: tables.finals(figures),
        lambda: tables.choices(rows),
        lambda: tables.screened(rows),
    ]
    for table in found:
        parts += [*table(), ""]
    return "\n".join(parts)


def _parents(net: str, parents: dict[tuple[str, str], Row]) -> str:
    said = []
    for side in SIDES:
        row = parents.get((net, side))
        if row and side == "ours":
            said.append(
                f"Parent: {row['test']:.2f} % in Flax "
                f"({row['re_estimated']:.2f} % with BatchNorm re-estimated on JPEG "
                "images; its own statistics are used), "
                f"{row['full_macs'] / 1e6:.1f} M multiply-adds, "
                f"{row['params'] / 1e3:.0f} k parameters."
            )
        elif row:
            said.append(
                f"In PyTorch {row['test']:.2f} %, logits apart by {row['apart']:.0e}."
            )
    return " ".join(said)


if __name__ == "__main__":
    out, docs = map(Path, sys.argv[1:])
    print(f"wrote {write(store.read(out / 'results.jsonl'), docs)}")
