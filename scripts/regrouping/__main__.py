"""`python -m regrouping [OPTIONS]`: run what is missing, write the page."""

import argparse
import sys
from pathlib import Path

import numpy as np
from studies import store
from studies.parents import write
from studies.real import Absent

from cutjax.data import Dataset
from regrouping import latency, page
from regrouping.nets import NAMES, load, nets
from regrouping.systems import (
    SYSTEMS,
    merged,
    pruned,
    row_of_parents,
    sharing_of,
    taught,
)

BUDGETS = {
    ("morpho", "apart"): (1.0, 0.7, 0.5, 0.35, 0.28, 0.22, 0.18, 0.15),
    ("morpho", ""): (0.35, 0.28, 0.22, 0.18, 0.15, 0.12, 0.1, 0.08),
    ("set_cards", "apart"): (0.15, 0.1, 0.07, 0.05, 0.035, 0.025, 0.018),
    ("set_cards", ""): (0.08, 0.055, 0.04, 0.028, 0.02, 0.014, 0.01),
}
"""Multiply-adds of all tasks, in those of one network before pruning."""


def main() -> int:
    """Works off what is missing, then writes the page."""
    options = arguments()
    results = options.out / "results.jsonl"
    for name in options.data if options.only != "page" else ():
        try:
            data = load(name, options.out / "data")
        except Absent as absent:
            print(absent, file=sys.stderr)
            continue
        for seed in options.seeds:
            if options.only == "latency":
                clock(data, seed, options, results)
            else:
                one_seed(data, seed, options, results)
    rows, times = store.read(results), store.read(options.out / "latency.jsonl")
    path = options.docs / "merging-subsets.md"
    path.write_text(page.page(rows, times))
    print(f"wrote {path}")
    return 0


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="scripts/regroup", description=__doc__)
    add = parser.add_argument
    add("--data", nargs="+", choices=NAMES, default=NAMES, help="data sets")
    add("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, help="to compare")
    add("--seeds", nargs="+", type=int, default=(0,), help="starts, order of data")
    add("--out", type=Path, default=Path("runs/regroup"), help="for results")
    add("--docs", type=Path, default=Path("docs"), help="where the page is written")
    add(
        "--only",
        choices=("page", "latency"),
        help="write the page from what is there; "
        "or time the networks in its first tables, on an idle machine, first",
    )
    return parser.parse_args()


def one_seed(
    data: Dataset, seed: int, options: argparse.Namespace, results: Path
) -> None:
    """All systems and budgets of one set of networks."""
    done = {row["key"] for row in store.read(results)}
    key = f"{data.name}|{seed}"
    missing = [s for s in options.systems if f"{key}|{s}|done" not in done]
    if not missing:
        return
    found = nets(data, seed, options.out / "nets")
    if f"{key}|parents" not in done:
        note(results, f"{key}|parents", row_of_parents(found), data.name, seed, "")
    lesson = taught(found)
    for system in missing:
        sharing = sharing_of(system, found)
        whole = merged(system, found, sharing, lesson)
        own = data.name, system if system == "apart" else ""
        for left in pruned(system, found, whole, sharing, lesson, BUDGETS[own]):
            name = f"{key}|{system}|{left.row['budget']:.3g}"
            if name not in done:
                keep = {group: np.asarray(v) for group, v in left.keep.items()}
                kept = {"keep": keep, "params": left.params}
                write(options.out / "models" / f"{name}.msgpack", kept)
                note(results, name, left.row, data.name, seed, system)
        store.append(results, {"key": f"{key}|{system}|done"})


def clock(data: Dataset, seed: int, options: argparse.Namespace, results: Path) -> None:
    """Milliseconds of the networks that the first table shows."""
    of = {"data": data.name, "seed": seed}
    rows = [row for row in store.read(results) if {**row, **of} == row]
    found = nets(data, seed, options.out / "nets")
    ms = latency.timed(found, rows, options.out / "models")
    row = {"key": f"{data.name}|{seed}", **of, "batch": latency.BATCH, "ms": ms}
    store.append(options.out / "latency.jsonl", row)


def note(results: Path, key: str, row: dict, data: str, seed: int, system: str) -> None:
    """One row in the results, and on the screen."""
    names = {"key": key, "data": data, "seed": seed, "system": system}
    store.append(results, {**names, **row})
    said = {task: round(value, 1) for task, value in row["validation"].items()}
    print(key, said, f"{row.get('seconds', 0):.0f} s", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
