"""`python -m recovering [OPTIONS]`: run what is missing, write the page."""

import argparse
import sys
from pathlib import Path

from studies import store
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
    """All budgets of a data set, those left out whose last step is there."""
    done = {row["key"] for row in store.read(results)}
    try:
        load(name, options.out / "data")
    except Absent as absent:
        print(absent, file=sys.stderr)
        return
    if f"{name}|parent" not in done:
        row = steps.reference(name, options.out)
        store.append(results, {**row, "key": f"{name}|parent", "data": name})
    budgets = BUDGETS[name][:2] if options.quick else BUDGETS[name]
    cells = [steps.Named(name, b, seed, options.epochs) for b in budgets]
    last = {b: "in rounds" if b in UNTRAINED else "fine-tuned" for b in budgets}
    cells = [cell for cell in cells if cell.key(last[cell.budget]) not in done]
    if not cells:
        return
    p = parent(name, options.out)
    data = steps.calibration(p, seed)
    scores = cj.saliency(p.apply, p.params, p.graph, p.losses, data, progress=False)
    for budget, *gradual in steps.in_rounds(p, data, budgets):
        for cell in (c for c in cells if c.budget == budget):
            for row in steps.run(p, data, scores, tuple(gradual), cell):
                if row["key"] not in done:
                    store.append(results, row)
                print(row["key"], {t: round(v, 2) for t, v in row["test"].items()})


if __name__ == "__main__":
    raise SystemExit(main())
