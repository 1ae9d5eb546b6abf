"""What is compared: who shares which channels, and how kernels are made."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import optax

import cutjax as cj
from cutjax.data import Split, batches
from cutjax.merge import OWN, Merged, Sharing
from cutjax.recover import recalibrate
from merging.nets import CLASSES, Pair, of

Row = dict[str, Any]
PARTIAL = {"mnist": 2, "cifar": 4}
"""Groups shared where not all are: the first of four, of six."""
EXCLUSIVE = 0.4
"""Of all channels, those exclusive to one of the networks."""
KERNELS = ("average", "RegMean, MTZ", "least squares")


def sharings(p: Pair) -> Iterator[tuple[str, Sharing]]:
    """Names and sharings, from none to all channels."""
    names, graph = list(p.networks), p.graph
    params = {name: net.params for name, net in p.networks.items()}
    apply, data = p.networks["low"].apply, p.calibration
    same = {g.name: {n: np.arange(g.size) for n in names} for g in graph.free}
    yield (
        "none (ensemble)",
        {
            g: {n: np.full(len(s), OWN) for n, s in found.items()}
            for g, found in same.items()
        },
    )
    yield "as they stand", same
    orders, _ = cj.merge.align_all(
        graph, params, apply=apply, batches=data, progress=False
    )
    yield "permuted", (permuted := cj.merge.from_permutations(graph, orders))
    known = cj.merge.correlations(apply, graph, params, data, progress=False)
    yield "zipped", (zipped := cj.merge.zipit(graph, known, names)[0])
    early = [group.name for group in graph.free][: PARTIAL[p.data.name]]
    for name, found in (("permuted", permuted), ("zipped", zipped)):
        yield (
            f"{name}, {len(early)} of {len(graph.free)} groups",
            cj.merge.until(graph, names, found, early),
        )
    levels = cj.merge.by_scores(scores(p), orders)
    types, _ = cj.merge.regroup(levels, names, exclusive=EXCLUSIVE)
    yield "regrouped (PAM)", cj.merge.pam_sharing(graph, names, orders, types)


def scores(p: Pair) -> dict[str, Any]:
    """Of each network, by its own classes."""

    def loss(y: Any, t: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(y, t).mean()

    return {
        name: cj.saliency(
            *(net.apply, net.params, net.graph, {"label": loss}),
            list(batches(of(p.data.calibration, CLASSES[name]), 100)),
            criterion=cj.taylor,
            progress=False,
        )["label"]
        for name, net in p.networks.items()
    }


def kernels(p: Pair, sharing: Sharing) -> Iterator[tuple[str, Merged]]:
    """Names and merged networks, none of them trained."""
    data = p.calibration
    train = cj.merge.train_apply(p.trains, sharing)

    def anew(merged: Merged) -> Merged:
        new = recalibrate(train, merged.params, data, progress=False)
        return merged._replace(params=new)

    average, weighed, fitted = KERNELS
    yield average, anew(cj.merge.average(p.networks, sharing, data[0]))
    given = p.networks, sharing, data
    yield weighed, anew(cj.merge.mtz(*given, progress=False))
    yield fitted, cj.merge.least_squares(*given, progress=False)


def figures(p: Pair, merged: Merged, test: Split) -> Row:
    """Accuracy in percent, and multiply-adds beside those of one network."""
    found = [merged.apply(merged.params, x) for x, _ in batches(test, 250)]
    logits = {n: np.concatenate([np.asarray(f[n]) for f in found]) for n in CLASSES}
    labels = test.y["label"]
    joint = np.concatenate([logits[n] for n in CLASSES], 1).argmax(1)
    rows: Row = {"joint": 100 * float((joint == labels).mean())}
    for name, classes in CLASSES.items():
        its = np.isin(labels, classes)
        right = logits[name][its].argmax(1) + classes.start == labels[its]
        rows[name] = 100 * float(right.mean())
    graph = cj.trace(merged.apply, merged.params, test.x[:1])
    one = cj.trace(p.networks["low"].apply, p.networks["low"].params, test.x[:1])
    whole = one.cost().flops
    rows["both_cost"] = graph.cost().flops / whole
    rows["one_cost"] = float(
        np.mean([graph.cost(tasks=(n,)).flops / whole for n in CLASSES])
    )
    return rows
