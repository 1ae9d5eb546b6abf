"""A merged network beside those that it is made of: answers, multiply-adds, bytes."""

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import jax
import numpy as np

from cutjax._jit import jit
from cutjax.cli.bundle import by_network
from cutjax.cli.union import Made
from cutjax.data import Split
from cutjax.graph_json import struct_from_text
from cutjax.losses import losses_for
from cutjax.merge.merged import OWN, READS, SHARED, answers
from cutjax.metrics import accuracy, named
from cutjax.source import Job
from cutjax.trace import trace

BATCH, MOST = 500, 5
_AS = "as before: "


def measured(jobs: Mapping[str, Job], made: Made) -> dict[str, Any]:
    """Everything that is known of a merged network, as JSON.

    Args:
        jobs: the networks and their data, by name.
        made: the merged network.

    Returns:
        `tasks`: per task agreement, accuracy and loss on test data, alone and merged;
        `subsets`: cost of each subset of the networks, of more than 5 networks only of
        each and of all; `params`: how many are shared and own; `seconds`.
    """
    tasks = [row for name, job in jobs.items() for row in _rows(name, job, made)]
    return {
        "tasks": tasks,
        "subsets": _subsets(made),
        "params": _params(made),
        "seconds": made.seconds,
    }


def _rows(name: str, job: Job, made: Made) -> list[dict[str, Any]]:
    """A row per task of a network."""
    x, labels = job.dataset.test
    own = _answers(job.apply, job.params, x)
    keys = {task: key for key, task in answers(name, {t: t for t in own}).items()}
    apply, params = made.merged

    def mine(p: Any, x: Any) -> dict[str, Any]:
        out = apply(p, x)
        found = {task: out[key] for task, key in keys.items()}
        return found | {_AS + task: value for task, value in found.items()}

    before = {_AS + t: v for t, v in _as_labels(job, own).items()}
    both = accuracy(mine, params, Split(x, {**labels, **before}))
    alone = accuracy(job.apply, job.params, Split(x, labels))
    losses = losses_for(job.dataset)
    new = _answers(mine, params, x)
    return [
        {
            "task": key,
            "agreement": both.get(_AS + task),
            "accuracy_alone": alone.get(task),
            "accuracy": both.get(task) if task in alone else None,
            "loss_alone": _loss(losses.get(task), own[task], labels.get(task)),
            "loss": _loss(losses.get(task), new[task], labels.get(task)),
        }
        for task, key in keys.items()
    ]


def _answers(apply: Callable[..., Any], params: Any, x: np.ndarray) -> dict[str, Any]:
    """What a function answers to many inputs."""
    run, size, parts = jit(lambda p, x: named(apply(p, x))), min(BATCH, len(x)), []
    for i in range(0, len(x), size):
        rows = x[i : i + size]
        left = [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
        found = run(params, np.pad(rows, left))
        parts.append({t: np.asarray(v)[: len(rows)] for t, v in found.items()})
    return {t: np.concatenate([part[t] for part in parts]) for t in parts[0]}


def _as_labels(job: Job, own: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A network's own answers as labels: classes, or numbers if they vary."""
    found = {}
    for task, value in own.items():
        several = value.ndim > 1 and value.shape[-1] > 1
        if job.dataset.tasks.get(task, several):
            found[task] = value.argmax(-1)
        elif np.std(value) > 0:
            found[task] = value.astype(np.float32)
    return found


def _loss(loss: Any, output: np.ndarray, labels: Any) -> float | None:
    return None if loss is None or labels is None else float(loss(output, labels))


def _subsets(made: Made) -> list[dict[str, Any]]:
    """What each subset of the networks costs, beside one network and several."""
    names = tuple(made.networks)
    inputs = map(struct_from_text, made.networks[names[0]].graph.inputs)
    graph = trace(by_network(made.merged, names), made.merged.params, *inputs)
    alone = {name: net.graph.cost().flops for name, net in made.networks.items()}
    mean = max(sum(alone.values()) / len(alone), 1)
    counts = range(1, len(names) + 1) if len(names) <= MOST else (1, len(names))
    rows = []
    for subset in (s for k in counts for s in combinations(names, k)):
        cost = graph.cost(tasks=subset)
        separate = max(sum(alone[name] for name in subset), 1)
        rows.append(
            {
                "networks": list(subset),
                "flops": cost.flops,
                "params": cost.params,
                "of_one": cost.flops / mean,
                "side_by_side": cost.flops / separate,
            }
        )
    return rows


def _params(made: Made) -> dict[str, Any]:
    """How many parameters are shared, how many each network's own."""
    own = dict.fromkeys(made.networks, 0)
    shared = 0
    for sides in made.merged.params.values():
        shared += _count(sides.get(SHARED))
        for side in (OWN, READS):
            for name, leaves in sides.get(side, {}).items():
                own[name] += _count(leaves)
    separate = sum(_count(net.params) for net in made.networks.values())
    total = shared + sum(own.values())
    return {"shared": shared, "own": own, "total": total, "separate": separate}


def _count(tree: Any) -> int:
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(tree))
