"""`python -m recovering [OPTIONS]`: run what is missing, write the page."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from flax.serialization import msgpack_restore
from studies import store
from studies.parents import write
from studies.real import NAMES, Absent, load

import cutjax as cj
from recovering import page, steps
from recovering.parents import BUDGETS, UNTRAINED, parent


def main() -> int:
    """Works off what is missing, then writes the page."""
    options = arguments()
    results = options.out / "results.jsonl"
    if options.only != "page":
        for seed in options.seeds:
            for name in options.data:
                one_seed(name, seed, options, results)
    written = page.write(store.read(results), options.docs)
    print("\n".join(f"wrote {path}" for path in written))
    return 0


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="scripts/recovery", description=__doc__)
    add = parser.add_argument
    add("--data", nargs="+", choices=NAMES, default=NAMES, help="data sets")
    add("--seeds", nargs="+", type=int, default=(0, 1, 2), help="calibration, order")
    add("--epochs", type=int, help="of distillation; default: a minute or two")
    add("--quick", action="store_true", help="one budget per data set")
    add("--out", type=Path, default=Path("runs/recovery"), help="for results")
    add("--docs", type=Path, default=Path("docs"), help="where the page is written")
    add("--only", choices=("page",), help="write the page from what is there")
    return parser.parse_args()


def one_seed(name: str, seed: int, options: argparse.Namespace, results: Path) -> None:
    """All budgets of a data set; what is there is left out."""
    try:
        load(name, options.out / "data")
    except Absent as absent:
        print(absent, file=sys.stderr)
        return
    done = {row["key"] for row in store.read(results)}

    def add(row: dict) -> None:
        # What a kill interrupted is done again, but not written twice.
        if row["key"] not in done:
            store.append(results, row)
        print(row["key"], {t: round(v, 2) for t, v in row["test"].items()}, flush=True)

    if f"{name}|parent" not in done:
        row = steps.reference(name, options.out)
        add({**row, "key": f"{name}|parent", "data": name})
    budgets = BUDGETS[name][:2] if options.quick else BUDGETS[name]
    cells = [steps.Named(name, b, seed, options.epochs) for b in budgets]
    if not all(start_file(options.out, cell).exists() for cell in cells):
        before_training(name, budgets, options.out, add)
    p = parent(name, options.out)
    for cell in cells:
        if cell.budget not in UNTRAINED and cell.key("fine-tuned") not in done:
            start = msgpack_restore(start_file(options.out, cell).read_bytes())
            for row in steps.run(p, steps.Start(**start), cell):
                add(row)


def start_file(out: Path, cell: steps.Named) -> Path:
    """Where the cut that training starts from is kept."""
    return out / "starts" / f"{cell.data}_{cell.budget:g}.msgpack"


def before_training(
    name: str, budgets: Sequence[float], out: Path, add: Callable[[dict], None]
) -> None:
    """All that needs no training and no seed; keeps the best by validation data."""
    p = parent(name, out)
    data = steps.calibration(p)
    scores = cj.saliency(p.apply, p.params, p.graph, p.losses, data, progress=False)
    for budget, *gradual in steps.in_rounds(p, data, tuple(budgets)):
        cell = steps.Named(name, budget)
        found = list(steps.untrained(p, data, scores, tuple(gradual), cell))
        for row, _ in found:
            add(row)
        _, best = max(found, key=lambda pair: steps.mean(pair[0]["validation"]))
        write(start_file(out, cell), best._asdict())


if __name__ == "__main__":
    raise SystemExit(main())
