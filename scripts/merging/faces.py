"""`python -m merging.faces [OPTIONS]`: two published networks as one; scripts/faces."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from studies import store

import cutjax as cj
from cutjax.merge import OWN, Merged, Sharing
from merging.face_nets import FACES, NETWORKS, WEIGHTS, WHEEL, Faces, images, pair
from merging.methods import KERNELS, Row, kernels

SHARED = (2, 4, 6)
"""Groups shared, from the first on, where not all are."""

PAGE = """# Two published networks as one

Mini-XCEPTION for 64x64 grey faces, as published with weights in Keras' HDF5: one
network for emotion (7 classes), one for gender (2), one trunk of two convolutions and
four residual blocks of separable ones, 496 channels in ten groups. Imported by
`cutjax.models.keras`, aligned by activations, merged without any training or label.
`scripts/faces` makes this page.

Images: the {faces} faces of `lfw_subset.npy` in the wheel of {wheel},
crops of Labeled Faces in the Wild of 25x25 pixels, enlarged to 64x64; smaller and cut
closer than those that the networks were trained on. Half of the faces (and their mirror
images) calibrate, the other half is answered{folds}. No figure here is an accuracy: it
is how often, in percent, the merged network's answer is the original's, and the mean
Kullback-Leibler divergence (nats) of its probabilities from the original's. Percentages
of {answered} faces have a standard error of up to {error:.0f} points. Whoever always
gave the most frequent answer would agree in {emotion:.0f} % (emotion) and
{gender:.0f} % (gender). Cost: multiply-adds of both tasks, and of one, over those of
one network.

Averages and RegMean get new statistics of BatchNorm, from these faces, in layers of
their own too; what that does alone is the first row (as published, the two side by side
agree with themselves). All that was tried is shown; nothing was chosen.

{rows}
"""
HEAD = (
    *("shared channels", "kernels", "emotion, %", "gender, %"),
    *("emotion, KL", "gender, KL", "cost, both", "cost, one"),
)


def main() -> int:
    """Works off what is missing, then writes the page."""
    options = arguments()
    results = options.out / "results.jsonl"
    if options.only != "page":
        if not WEIGHTS.exists():
            print(f"left out: no folder {WEIGHTS}", file=sys.stderr)
            return 0
        found = images(options.out)
        for fold in options.folds:
            one_fold(pair(found, fold), fold, results)
    path = options.docs / "merging-faces.md"
    path.write_text(page(list(store.read(results))))
    print(f"wrote {path}")
    return 0


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="scripts/faces", description=__doc__)
    add = parser.add_argument
    folds = {"nargs": "+", "type": int, "choices": (0, 1), "default": (0, 1)}
    add("--folds", **folds, help="which half calibrates")
    add(
        "--out", type=Path, default=Path("runs/faces"), help="for the wheel and results"
    )
    add("--docs", type=Path, default=Path("docs"), help="where the page is written")
    add("--only", choices=("page",), help="write the page from what is there")
    return parser.parse_args()


def sharings(p: Faces) -> Iterator[tuple[str, Sharing]]:
    """Names and sharings, from none to all channels."""
    names, graph = list(p.networks), p.networks["emotion"].graph
    params = {name: net.params for name, net in p.networks.items()}
    applies = {name: net.apply for name, net in p.networks.items()}
    same = {g.name: {n: np.arange(g.size) for n in names} for g in graph.free}
    none = {g: {n: np.full(len(s), OWN) for n, s in f.items()} for g, f in same.items()}
    yield "none (ensemble)", none
    orders, _ = cj.merge.align_all(
        graph, params, apply=applies, batches=p.calibration, progress=False
    )
    permuted = cj.merge.from_permutations(graph, orders)
    known = cj.merge.correlations(applies, graph, params, p.calibration, progress=False)
    zipped, _ = cj.merge.zipit(graph, known, names)
    for count in SHARED:
        early = [group.name for group in graph.free][:count]
        for name, found in (("permuted", permuted), ("zipped", zipped)):
            title = f"{name}, {count} of {len(graph.free)} groups"
            yield title, cj.merge.until(graph, names, found, early)
    yield from (("as they stand", same), ("permuted", permuted), ("zipped", zipped))


def one_fold(p: Faces, fold: int, results: Path) -> None:
    """All sharings and kernels, with one half of the faces to calibrate."""
    done = {row["key"] for row in store.read(results)}
    said = {
        n: answers(net.apply(net.params, p.held))[n] for n, net in p.networks.items()
    }
    if f"{fold}|most" not in done:
        most = {
            n: 100 * float(np.bincount(v.argmax(1)).max()) / len(p.held)
            for n, v in said.items()
        }
        store.append(results, {"key": f"{fold}|most", "most": most})
    for shared, sharing in sharings(p):
        # An ensemble's kernels are the originals', however made; its one row shows
        # what new statistics do alone.
        wanted = KERNELS[:1] if shared.startswith("none") else KERNELS
        if all(f"{fold}|{shared}|{made}" in done for made in wanted):
            continue
        # Lazy: what follows the last one wanted is not made.
        for _, (made, merged) in zip(wanted, kernels(p, sharing), strict=False):  # type: ignore[arg-type]
            key = f"{fold}|{shared}|{made}"
            if key not in done:
                row = figures(p, merged)
                names = {"key": key, "fold": fold, "shared": shared, "kernels": made}
                store.append(results, {**names, **row})
                print(key, {k: round(v, 2) for k, v in row.items()}, flush=True)


def answers(logits: dict[str, Any]) -> dict[str, np.ndarray]:
    """Probabilities, float64."""
    return {n: np.asarray(jax.nn.softmax(v), np.float64) for n, v in logits.items()}


def figures(p: Faces, merged: Merged) -> Row:
    """Agreement with the originals, and multiply-adds beside those of one network."""
    found = answers(merged.apply(merged.params, p.held))
    graph = cj.trace(merged.apply, merged.params, p.held[:1])
    whole = np.mean([net.graph.cost().flops for net in p.networks.values()])
    alone = [graph.cost(tasks=(name,)).flops / whole for name in p.networks]
    row: Row = {"both": float(graph.cost().flops / whole), "one": float(np.mean(alone))}
    for name, net in p.networks.items():
        own = answers(net.apply(net.params, p.held))[name]
        same = own.argmax(1) == found[name].argmax(1)
        apart = own * np.log(np.maximum(own, 1e-30) / np.maximum(found[name], 1e-30))
        row |= {name: 100 * float(same.mean())}
        row |= {f"{name} KL": float(apart.sum(1).mean())}
    return row


def page(rows: list[Row]) -> str:
    """The page, from all rows; halves that are done in part count where they are."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if "shared" in row:
            cells.setdefault((row["shared"], row["kernels"]), []).append(row)

    def place(cell: tuple[tuple[str, str], list[Row]]) -> tuple[float, str, int]:
        (shared, made), found = cell
        return -round(found[0]["both"], 2), shared, KERNELS.index(made)

    digits = {"emotion": 0, "gender": 0, "emotion KL": 2, "gender KL": 2}
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for names, found in sorted(cells.items(), key=place):
        said = [
            f"{np.mean([row[key] for row in found]):.{n}f}"
            for key, n in {**digits, "both": 2, "one": 2}.items()
        ]
        lines.append(f"| {' | '.join([*names, *said])} |")
    most = [row["most"] for row in rows if "most" in row]
    both = "; then the halves change places" if len(most) > 1 else ""
    common = {name: np.mean([row[name] for row in most]) for name in NETWORKS}
    text = {"faces": FACES, "wheel": WHEEL, "folds": both, "rows": "\n".join(lines)}
    answered = FACES // 2 * len(most)
    error = 50 / max(answered, 1) ** 0.5
    return PAGE.format(answered=answered, error=error, **text, **common)


if __name__ == "__main__":
    raise SystemExit(main())
