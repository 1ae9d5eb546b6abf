"""The page: docs/study.md and its pictures, made of the results alone."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from studies import plots
from studies.figures import Figure, read
from studies.grid import TASKS
from studies.methods import (
    AT_STAKE,
    BASELINES,
    COMPENSATED,
    CONTROL,
    DEFAULT,
    IMAGES,
    Method,
)
from studies.tables import PARTS, fewer, levels, varied
from studies.verdict import Duel, duels, tally

MOST = 60  # lines of comparisons that were not won

TITLES = {
    "set_cards": "Photos of SET cards",
    "morpho": "MNIST digits and their shape",
    "digits": "Scenes of two digits (bundled)",
}

HEAD = """# Which choice wins, on real data

`scripts/study` writes this page from `runs/study/results.jsonl`; no number here was
typed by hand. {minutes}

- *lost*: points of test accuracy below the parent answering the same tasks; percent of
  labels for classes, percent of variance explained (R^2, 0 at least) for numbers.
- *budget*: the share of the parent's parameters, for the tasks that are kept, that may
  stay. Widths are solved for it.
- *±*: standard deviation over {seeds} seed(s). One parent per data set; a seed draws
  the 512 calibration examples, the random channels and the order of fine-tuning.
- *cut only*: channels removed, nothing else, on {some:,} test images.
  *compensated*: readers refitted in closed form on the calibration examples, without
  labels. *fine-tuned*: a short distillation from the parent without labels, the same
  number of steps for all; BatchNorm keeps its statistics where readers were refitted
  to them, and follows the batches elsewhere. Both on all test images.
- Scores are fused over tasks by their mean and widths found by `greedy`, where a name
  says nothing else. Pruning never sees validation or test images; the two budgets *at
  stake* were chosen on validation images.
- *random*: random channels in uniform widths. *uniform*: the largest weights in uniform
  widths. *disparse*: DiSparse's union of tasks over SNIP scores, one threshold for all.
  *plain cut*: CUT's sums of |w dL/dw|, majority vote, one threshold. *new weights*: the
  default's widths with fresh weights, trained as long as the others.
"""


def write(rows: Iterable[dict[str, Any]], docs: Path) -> list[Path]:
    """Write the page and the pictures.

    Args:
        rows: of results.jsonl.
        docs: the folder.

    Returns:
        What was written.

    Raises:
        SystemExit: there is nothing to write about.
    """
    rows = list(rows)
    parents, figures = read(rows)
    if not figures:
        raise SystemExit("no figure yet; run scripts/study first")
    docs.mkdir(parents=True, exist_ok=True)
    pictures = plots.draw(figures, docs)
    text = "\n".join([_head(rows, figures), _verdict(figures), _parents(parents)])
    for data in parents:
        here = [f for f in figures if f.data == data]
        if here:
            text += "\n" + _of_data(data, here, pictures.get(data))
    page = docs / "study.md"
    page.write_text(text.rstrip() + "\n")
    return [page, *(docs / name for names in pictures.values() for name in names)]


def _head(rows: list[dict[str, Any]], figures: list[Figure]) -> str:
    # Of the processor: the machine is shared, and a run may have been interrupted.
    spent = sum(row.get("cpu", row.get("seconds", 0.0)) for row in rows) / 60
    minutes = (
        f"{len(figures):,} figures, {spent:.0f} minutes of one core, parents included."
    )
    seeds = len({f.seed for f in figures})
    return HEAD.format(minutes=minutes, seeds=seeds, some=IMAGES)


def _parents(parents: dict[str, Any]) -> str:
    lines = ["## Data and parents", ""]
    lines += [
        "| data | parent | test accuracy | trained | fine-tuning |",
        "|" + "---|" * 5,
    ]
    for data, row in parents.items():
        scores = ", ".join(f"{t} {row['metrics'][t]:.1f}" for t in TASKS[data])
        lines.append(
            f"| {data}: {row['sizes']['train']:,} train, {row['sizes']['test']:,} test "
            f"| {row['params']:,} parameters, {row['flops'] / 1e6:.1f} MFLOPs "
            f"| {scores} "
            f"| {row['steps']:,} steps | {row['distil']:,} steps "
            f"({100 * row['distil'] / row['steps']:.0f} %) |"
        )
    return "\n".join([*lines, ""])


def _of_data(data: str, figures: list[Figure], pictures: list[str] | None) -> str:
    parts = [f"## {TITLES[data]}", ""]
    parts += [f"![{data}]({name})\n" for name in pictures or ()]
    cut, fitted, tuned = (
        [f for f in figures if f.stage == s]
        for s in ("cut", "compensated", "distilled")
    )
    plain = [f for f in cut if f.method == Method(f.method.criterion)]
    found = [levels("Criteria, cut only", plain)]
    found += [levels("Compensated", _of(fitted, COMPENSATED))]
    found += [levels("Fine-tuned", _of(tuned, (DEFAULT, *BASELINES.values(), CONTROL)))]
    helped = [f for f in tuned if f.method.compensate]
    found += [levels("Fine-tuned, all compensated before", helped)]
    found += [fewer(data, figures)]
    for field, what in PARTS.items():
        found += [levels(f"{what}, cut only", varied(cut, field))]
        found += [levels(f"{what}, compensated", varied(fitted, field))]
    return "\n".join([*parts, *(part for part in found if part)])


def _of(figures: list[Figure], chosen: Iterable[Method]) -> list[Figure]:
    wanted = set(chosen)
    return [f for f in figures if f.method in wanted]


VERDICT = """## Does the default win?

Against each baseline at the two budgets at stake
({budgets}), for each subset of tasks
that a stage has. *wins* and *loses*: by more than the spread, the root of the sum of
both variances over seeds; *undecided*: within it. *points*: how much more the baseline
loses, the least and the mean of these comparisons.

| when | baseline | measure | wins | undecided | loses | points: least | mean |
|---|---|---|---:|---:|---:|---:|---:|"""


def _verdict(figures: list[Figure]) -> str:
    """Won, undecided, lost; and which were not won."""
    found = duels(figures)
    if not found:
        return ""
    chosen = dict.fromkeys(f.data for f in figures)
    at = "; ".join(f"{d} {', '.join(f'{b:g}' for b in AT_STAKE[d])}" for d in chosen)
    lines = [VERDICT.format(budgets=at)]
    kinds: dict[tuple[str, ...], list[Duel]] = {}
    for duel in found:
        kinds.setdefault((duel.when, duel.rival, duel.measure), []).append(duel)
    for kind, here in kinds.items():
        margins = [duel.margin for duel in here]
        points = (f"{min(margins):+.1f}", f"{sum(margins) / len(margins):+.1f}")
        counts = map(str, tally(here).values())
        lines.append(f"| {' | '.join((*kind, *counts, *points))} |")
    total = ", ".join(f"{number} {what}" for what, number in tally(found).items())
    lines += ["", f"Of {len(found)} comparisons: {total}.", ""]
    return "\n".join(lines + _not_won(found))


def _not_won(found: list[Duel]) -> list[str]:
    rest = [d for d in found if d.said != "wins"]
    if not rest:
        return ["The default beats every baseline in every comparison.", ""]
    lines = ["Not won:", ""]
    lines += ["| data | when | budget | tasks | measure | baseline | points | |"]
    lines += ["|---|---|---:|---|---|---|---:|---|"]
    for d in sorted(rest, key=lambda d: d.margin)[:MOST]:
        tasks = "all" if len(d.tasks) > 3 else " + ".join(d.tasks)
        lines.append(
            f"| {d.data} | {d.when} | {d.budget:g} | {tasks} | {d.measure} | {d.rival} "
            f"| {d.margin:+.1f} ± {d.spread:.1f} | {d.said} |"
        )
    if len(rest) > MOST:
        lines += ["", f"... and {len(rest) - MOST} more, none worse."]
    return [*lines, ""]
