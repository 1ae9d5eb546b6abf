"""`python -m merging [OPTIONS]`: run what is missing, write the page."""

import argparse
import sys
from pathlib import Path

from rivalry import images
from studies import real, store

from merging.data import NAMES, Halves, load
from merging.methods import KERNELS, figures, kernels, sharings
from merging.nets import pair
from merging.page import page

SEEDS = {"mnist": (0, 1, 2), "cifar": (0,)}
"""Starts and orders of data; the larger networks take half an hour each."""


def main() -> int:
    """Works off what is missing, then writes the page."""
    options = arguments()
    results = options.out / "results.jsonl"
    for name in options.data if options.only != "page" else ():
        try:
            data = load(name, options.out / "data")
        except (real.Absent, images.Absent) as absent:
            print(absent, file=sys.stderr)
            continue
        for seed in options.seeds or SEEDS[name]:
            one_seed(data, seed, options.out, results)
    path = options.docs / "merging.md"
    path.write_text(page(list(store.read(results))))
    print(f"wrote {path}")
    return 0


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="scripts/merges", description=__doc__)
    add = parser.add_argument
    add("--data", nargs="+", choices=NAMES, default=NAMES, help="data sets")
    add("--seeds", nargs="+", type=int, help="else 0 1 2 for mnist, 0 for cifar")
    add("--out", type=Path, default=Path("runs/merges"), help="for results")
    add("--docs", type=Path, default=Path("docs"), help="where the page is written")
    add("--only", choices=("page",), help="write the page from what is there")
    return parser.parse_args()


def one_seed(data: Halves, seed: int, out: Path, results: Path) -> None:
    """All sharings and kernels of a pair of networks."""
    done = {row["key"] for row in store.read(results)}
    start = f"{data.name}|{seed}"
    if f"{start}|done" in done:
        return
    both = pair(data, seed, out / "nets")
    for shared, sharing in sharings(both):
        if all(f"{start}|{shared}|{made}" in done for made in KERNELS):
            continue
        for made, merged in kernels(both, sharing):
            key = f"{start}|{shared}|{made}"
            if key not in done:
                row = figures(both, merged, both.data.test)
                names = {"data": data.name, "shared": shared, "kernels": made}
                store.append(results, {"key": key, "seed": seed, **names, **row})
                print(key, {k: round(v, 2) for k, v in row.items()}, flush=True)
    store.append(results, {"key": f"{start}|done"})


if __name__ == "__main__":
    raise SystemExit(main())
