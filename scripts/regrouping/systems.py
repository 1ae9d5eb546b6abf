"""Three ways to bring all tasks to a device, pruned and trained alike.

Apart: every network for itself. All shared: aligned networks as one of the same size.
Regrouped: Pruning-Aware Merging, channels shared or exclusive to a task by the levels
of their scores. Each is a merged network (`cutjax.merge`): an ordinary function.
"""

import itertools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import cutjax as cj
from cutjax.data import Split
from cutjax.errors import BudgetError
from cutjax.merge import Merged, Sharing
from cutjax.metrics import accuracy
from cutjax.recover import gradually
from regrouping.nets import BATCH, Nets

RATE = 1e-2
EXCLUSIVE = (0.1, 0.2, 0.3)
"""Shares of all channels that are exclusive to a task, at least."""
SPARING = ", sparing"
"""Cuts only what is shared, as PAM does: what is exclusive serves one task anyway."""
SYSTEMS = (
    *("all shared", "apart", *(f"regrouped {share:g}" for share in EXCLUSIVE)),
    f"regrouped {EXCLUSIVE[1]:g}{SPARING}",
)
EPOCHS = {"morpho": (6, 8), "set_cards": (3, 5)}
"""Of distillation: after merging, and at every budget."""
FALL = 1.6
"""How much smaller a round leaves the FLOPs, at most."""

Row = dict[str, Any]


def sharing_of(system: str, nets: Nets) -> Sharing:
    """Where channels go."""
    names, graph = nets.tasks, nets.graph
    if system == "apart":
        return cj.merge.until(graph, names, {}, [])
    data = [x for x, _ in nets.calibration]
    if system == "all shared":
        orders, _ = cj.merge.align_all(
            *(graph, {n: net.params for n, net in nets.networks.items()}),
            apply={n: net.apply for n, net in nets.networks.items()},
            batches=data,
            progress=False,
        )
        return cj.merge.from_permutations(graph, orders)
    share = float(system.removesuffix(SPARING).split()[1])
    given = nets.networks, scores(nets), data
    return cj.merge.pam(*given, exclusive=share, progress=False)[0]


def scores(nets: Nets) -> dict[str, Any]:
    """Of each network by its own task."""
    return {
        task: cj.saliency(
            *(net.apply, net.params, net.graph, {"answer": nets.losses[task]}),
            [(x, {"answer": y[task]}) for x, y in nets.calibration],
            progress=False,
        )["answer"]
        for task, net in nets.networks.items()
    }


def row_of_parents(nets: Nets) -> Row:
    """Accuracy of the originals."""
    apart = together(nets)
    return {
        "test": accuracy(apart.apply, apart.params, nets.data.test),
        "validation": accuracy(apart.apply, apart.params, nets.data.validation),
    }


def together(nets: Nets) -> Merged:
    """All originals, as they are, as one function."""
    return merged_function(nets, sharing_of("apart", nets))


def merged_function(nets: Nets, sharing: Sharing) -> Merged:
    """The originals as one function, with averaged parameters."""
    return cj.merge.average(nets.networks, sharing, nets.data.train.x[:1])


def taught(nets: Nets) -> Split:
    """Training images with what each network answers; labels are not looked at."""
    apart = together(nets)
    return cj.teach(apart.apply, apart.params, nets.data.train, tasks=nets.tasks)


def merged(system: str, nets: Nets, sharing: Sharing, lesson: Split) -> Merged:
    """The merged network, fitted and then distilled from the originals."""
    if system == "apart":
        return together(nets)
    data = [x for x, _ in nets.calibration]
    fitted = cj.merge.least_squares(nets.networks, sharing, data, progress=False)
    moving = cj.merge.train_apply(nets.trains, sharing)
    given = moving, fitted.params, lesson, nets, EPOCHS[nets.name][0]
    return fitted._replace(params=distilled(*given))


def distilled(moving: Any, params: Any, lesson: Split, nets: Nets, epochs: int) -> Any:
    """Trained to answer as the original networks do."""
    return cj.finetune(
        *(moving, params, lesson),
        tasks=nets.tasks,
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=RATE,
        balance="uncertainty",
        progress=False,
    )[0]


def path(start: float, budgets: tuple[float, ...]) -> list[float]:
    """Shares that fall by steps of at most FALL, through all budgets.

    Example:
        >>> [round(share, 2) for share in path(1.0, (0.5, 0.4))]
        [0.71, 0.5, 0.4]
    """
    out = []
    for budget in budgets:
        number = int(np.ceil(np.log(start / budget) / np.log(FALL) - 1e-9))
        out += np.geomspace(start, budget, max(number, 1) + 1).tolist()[1:-1]
        out.append(budget)
        start = budget
    return out


def feasible(rounds: Iterator[Any]) -> Iterator[Any]:
    """Rounds up to the first whose budget cannot be met: what is spared costs more."""
    try:
        yield from rounds
    except BudgetError as error:
        print(f"no further: {error}", flush=True)


class Found(NamedTuple):
    """A network at a budget: its row, what was kept, its function and parameters."""

    row: Row
    keep: Any
    apply: Any
    params: Any


def sparing(graph: Any, scores: Any, **options: Any) -> Any:
    """`cj.plan` that leaves exclusive channels alone."""
    return cj.plan(graph, scores, pin=cj.merge.exclusive_groups(graph), **options)


def pruned(
    system: str,
    nets: Nets,
    whole: Merged,
    sharing: Sharing,
    lesson: Split,
    budgets: tuple,
) -> Iterator[Found]:
    """The merged network, and what is left of it at every budget.

    Args:
        system: one of SYSTEMS.
        nets: the originals.
        whole: the merged network.
        sharing: of its channels.
        lesson: training data with what the originals answer.
        budgets: multiply-adds of all tasks, falling, in those of one original.
    """
    graph = cj.trace(whole.apply, whole.params, nets.data.train.x[:1])
    one, moving = nets.graph.cost().flops, cj.merge.train_apply(nets.trains, sharing)
    full = graph.cost().flops / one
    row = figures(nets, graph, {}, whole.apply, whole.params, full)
    yield Found(row, {}, whole.apply, whole.params)
    budgets = tuple(b for b in budgets if b < full)
    shares, data = path(full, budgets), nets.calibration
    rounds = gradually(
        *(whole.apply, whole.params, graph, data),
        budgets=[cj.Budget(flops=int(share * one)) for share in shares],
        score=lambda apply, params, graph: cj.saliency(
            apply, params, graph, nets.losses, data, progress=False
        ),
        plan=sparing if system.endswith(SPARING) else cj.plan,
        progress=False,
    )
    began = time.perf_counter()
    for share, found in zip(shares, feasible(rounds), strict=False):
        if share in budgets:
            child = cj.shrink(moving, graph, found.keep)
            epochs = EPOCHS[nets.name][1]
            params = distilled(child, found.params, lesson, nets, epochs)
            row = figures(nets, graph, found.keep, found.apply, params, share)
            row["seconds"] = time.perf_counter() - began
            yield Found(row, found.keep, found.apply, params)
            began = time.perf_counter()


def figures(
    nets: Nets, graph: Any, keep: Any, apply: Any, params: Any, share: float
) -> Row:
    """Accuracy, and the cost of every subset of the tasks."""
    one = nets.graph.cost().flops
    subsets = [
        subset
        for size in range(1, len(nets.tasks) + 1)
        for subset in itertools.combinations(nets.tasks, size)
    ]
    return {
        "budget": share,
        "test": accuracy(apply, params, nets.data.test),
        "validation": accuracy(apply, params, nets.data.validation),
        "params": graph.cost(keep).params,
        "flops": {"+".join(s): graph.cost(keep, tasks=s).flops / one for s in subsets},
    }
