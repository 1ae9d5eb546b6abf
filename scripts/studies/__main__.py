"""`python -m studies [OPTIONS]`: run the study's cells, write the page."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from studies import grid, pool, store
from studies.real import NAMES, Absent, load

STAGES = tuple(grid.WEIGHTS)


def main() -> int:
    """Works off what is missing, then writes the page."""
    options = arguments()
    options.out = options.out.absolute()
    results = options.out / "results.jsonl"
    size = "quick" if options.quick else "full" if options.full else "default"
    if options.only != "page":
        run(options, results, size)
    from studies import page

    written = page.write(store.read(results), options.docs.absolute())
    print("\n".join(f"wrote {path}" for path in written))
    return 0


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="scripts/study", description=__doc__)
    add = parser.add_argument
    add("--data", nargs="+", choices=NAMES, default=NAMES, help="data sets")
    add("--quick", action="store_true", help="a few cells of every stage")
    add("--full", action="store_true", help="the whole factorial")
    add("--stages", nargs="+", choices=STAGES, default=STAGES, help="stages")
    add("--workers", type=int, help="processes; default: one per core, at most 8")
    add("--out", type=Path, default=Path("runs/study"), help="where results are kept")
    add("--docs", type=Path, default=Path("docs"), help="where the page is written")
    add("--only", choices=("page",), help="write the page from what is there")
    return parser.parse_args()


def run(options: argparse.Namespace, results: Path, size: str) -> None:
    """Every cell that `results` lacks, data set by data set."""
    began = time.perf_counter()
    done = {row["key"] for row in store.read(results)}
    chosen = [name for name in options.data if there(name, options.out)]
    todo = {
        name: [c for c in grid.cells(name, size=size) if c.stage in options.stages]
        for name in chosen
    }
    todo = {n: [c for c in cells if c.key not in done] for n, cells in todo.items()}
    known = [n for n in chosen if f"{n}|parent" in done]
    pool.work(todo, known, results, workers=options.workers, seeds=grid.seeds(size))
    minutes = (time.perf_counter() - began) / 60
    store.append(results, {"key": f"run|{time.time():.0f}", "minutes": minutes})
    print(f"{sum(map(len, todo.values())):,} figures in {minutes:.1f} minutes")


def there(name: str, out: Path) -> bool:
    """Whether a data set can be read; says why not. Decodes it, if need be."""
    try:
        load(name, out / "data")
    except Absent as absent:
        print(absent, file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
