"""`python -m merging [OPTIONS]`: run what is missing, write the page."""

import argparse
import sys
from pathlib import Path

import numpy as np
from studies import store
from studies.real import Absent, load

from merging.methods import KERNELS, figures, kernels, sharings
from merging.nets import pair

PAGE = """# Two networks as one

Two networks of one architecture (four 3x3 convolutions of 32, 32, 64 and 64 channels,
BatchNorm), one trained on the digits 0 to 4 of MNIST, one on 5 to 9, from different
starts, 12 epochs of some 3,000 images each; merged without any training, by 1,000
calibration images of all ten classes. Labels are unseen, but for the scores of the
regrouping. `scripts/merges` makes this page. Percent of 2,000 test images, mean and
standard deviation over {seeds} seeds: among all ten classes (`joint`: the largest logit
of both heads), and within each network's five. Cost: multiply-adds of both tasks, and
of one, over those of one network. Averages and RegMean get new statistics of BatchNorm.
All that was tried is shown; nothing was chosen.

| shared channels | kernels | joint | digits 0-4 | digits 5-9 | cost, both | cost, one |
|---|---|---|---|---|---|---|
{rows}
"""


def main() -> int:
    """Works off what is missing, then writes the page."""
    options = arguments()
    results = options.out / "results.jsonl"
    if options.only != "page":
        try:
            data = load("morpho", options.out / "data")
        except Absent as absent:
            print(absent, file=sys.stderr)
            return 0
        for seed in options.seeds:
            one_seed(data, seed, results)
    path = options.docs / "merging.md"
    path.write_text(page(list(store.read(results))))
    print(f"wrote {path}")
    return 0


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="scripts/merges", description=__doc__)
    add = parser.add_argument
    add("--seeds", nargs="+", type=int, default=(0, 1, 2), help="starts, order of data")
    add("--out", type=Path, default=Path("runs/merges"), help="for results")
    add("--docs", type=Path, default=Path("docs"), help="where the page is written")
    add("--only", choices=("page",), help="write the page from what is there")
    return parser.parse_args()


def one_seed(data: object, seed: int, results: Path) -> None:
    """All sharings and kernels of a pair of networks."""
    done = {row["key"] for row in store.read(results)}
    if f"{seed}|done" in done:
        return
    both = pair(data, seed)  # type: ignore[arg-type]
    for shared, sharing in sharings(both):
        if all(f"{seed}|{shared}|{made}" in done for made in KERNELS):
            continue
        for made, merged in kernels(both, sharing):
            key = f"{seed}|{shared}|{made}"
            if key not in done:
                row = figures(both, merged, both.data.test)
                names = {"key": key, "seed": seed, "shared": shared, "kernels": made}
                store.append(results, {**names, **row})
                print(key, {k: round(v, 2) for k, v in row.items()}, flush=True)
    store.append(results, {"key": f"{seed}|done"})


def page(rows: list[dict]) -> str:
    """The page, from all rows."""
    cells: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        if "shared" in row:
            cells.setdefault((row["shared"], row["kernels"]), []).append(row)
    lines = []
    for (shared, made), found in cells.items():

        def said(name: str, digits: int = 1, found: list[dict] = found) -> str:
            values = [row[name] for row in found]
            spread = f" ± {np.std(values):.{digits}f}" if len(values) > 1 else ""
            return f"{np.mean(values):.{digits}f}{spread}"

        accuracy = [said(name) for name in ("joint", "low", "high")]
        cost = [
            f"{np.mean([r[k] for r in found]):.2f}" for k in ("both_cost", "one_cost")
        ]
        lines.append(f"| {' | '.join([shared, made, *accuracy, *cost])} |")
    seeds = len({row["seed"] for row in rows if "seed" in row})
    return PAGE.format(seeds=seeds, rows="\n".join(lines))


if __name__ == "__main__":
    raise SystemExit(main())
