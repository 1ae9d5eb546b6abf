"""What is done to a parent at a budget, step by step; a row of figures after each."""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from studies.parents import Parent

import cutjax as cj
from cutjax.data import Split, batches, take
from cutjax.metrics import accuracy
from cutjax.recover import gradually
from cutjax.recover.finetune import frozen
from cutjax.recover.settle import settle
from recovering.parents import RECIPE, parent

BATCH = 125
FALL = 1.35
"""How much smaller a round leaves the trunk, at most."""
EPOCHS = {
    "set_cards": {0.05: 4, 0.02: 6, 0.01: 6},
    "morpho": {0.32: 20, 0.2: 15, 0.1: 30},
    "digits": {0.32: 4, 0.2: 5, 0.1: 8},
}
"""Of distillation: 75 to 120 s on two quiet AVX2 cores, by the clock of 70 steps."""
RATE = 2e-2
LAST = 0.3
"""Of the epochs of distillation, in how many BatchNorm's statistics stay, where answers
are numbers. Where all are classes it is worth nothing, or less (scenes)."""

Row = dict[str, Any]


class Named(NamedTuple):
    """A cell: data set, budget, seed; epochs of distillation, if not the usual ones."""

    data: str
    budget: float
    seed: int = 0
    epochs: int | None = None

    def key(self, step: str) -> str:
        """Names a figure in the results."""
        return f"{self.data}|{self.budget:g}|{self.seed}|{step}"


class Start(NamedTuple):
    """Where training starts: what stays of the parent, and its parameters."""

    keep: Any
    params: Any


def calibration(p: Parent) -> list[Any]:
    """Batches of the whole calibration split; the files are sorted by class."""
    split = p.data.calibration
    rows = np.random.default_rng(7).permutation(len(split.x))
    return list(batches(take(split, rows), BATCH))


def reference(name: str, root: Path) -> Row:
    """The parent's own row."""
    p = parent(name, root)
    cost = p.graph.cost()
    return {
        "test": accuracy(p.apply, p.params, p.data.test),
        "params": cost.params,
        "trunk": cost.trunk_params,
        "flops": cost.flops,
        "steps": RECIPE[name].epochs * (len(p.data.train.x) // RECIPE[name].batch_size),
        "seconds": p.seconds,
    }


def path(budgets: tuple[float, ...]) -> list[float]:
    """Shares that fall by a quarter, through all budgets; far ones start later.

    Example:
        >>> [round(share, 2) for share in path((0.5, 0.32))]
        [0.79, 0.63, 0.5, 0.4, 0.32]
    """
    now, out = min(1.0, 6 * budgets[0]), []
    for budget in budgets:
        number = math.ceil(math.log(now / budget) / math.log(FALL))
        out += cj.schedule.exponential(budget, max(number, 1), start=now)
        now = budget
    return out


def in_rounds(p: Parent, data: list[Any], budgets: tuple[float, ...]) -> Iterator[Any]:
    """Per budget: the round that meets it, and the seconds of all rounds up to it."""
    began = time.perf_counter()
    shares = path(budgets)
    rounds = gradually(
        *(p.apply, p.params, p.graph, data),
        budgets=[cj.Budget(params={"trunk": share}) for share in shares],
        score=lambda apply, params, graph: cj.saliency(
            apply, params, graph, p.losses, data, progress=False
        ),
        progress=False,
    )
    spent = 0.0
    for share, found in zip(shares, rounds, strict=True):
        spent += time.perf_counter() - began
        if share in budgets:
            yield share, found, spent
        began = time.perf_counter()


def untrained(
    p: Parent, data: list[Any], scores: Any, gradual: tuple[Any, float], name: Named
) -> Iterator[tuple[Row, Start]]:
    """Rows with what they are of: cut, compensated, in rounds.

    Args:
        p: the parent.
        data: calibration data.
        scores: of the parent by it.
        gradual: the round at this budget, and the seconds that it took to get there.
        name: of the cell.
    """
    began = time.perf_counter()
    keep, info = cj.plan(
        p.graph, scores, budget=cj.Budget(params={"trunk": name.budget})
    )
    full = (p.apply, p.params, p.graph)
    apply, small = cj.cut(*full, keep)
    model, spent = (apply, small, info.cost), time.perf_counter() - began
    yield row(p, name, "cut", model, spent), Start(keep, small)
    began = time.perf_counter()
    small, _ = cj.compensate(*full, keep, data, progress=False)
    model, spent = (apply, small, info.cost), time.perf_counter() - began
    yield row(p, name, "compensated", model, spent), Start(keep, small)
    last, spent = gradual
    model = last.apply, last.params, last.cost
    yield row(p, name, "in rounds", model, spent), Start(last.keep, last.params)


def run(p: Parent, start: Start, name: Named) -> Iterator[Row]:
    """Rows in order: distilled, fine-tuned."""
    apply, cost = cj.shrink(p.apply, p.graph, start.keep), p.graph.cost(start.keep)
    began = time.perf_counter()
    params = distilled(p, start, name)
    seconds = time.perf_counter() - began
    yield row(p, name, "distilled", (apply, params, cost), seconds)
    began = time.perf_counter()
    params = finetuned(p, apply, params, name)
    seconds = time.perf_counter() - began
    yield row(p, name, "fine-tuned", (apply, params, cost), seconds)


def row(p: Parent, name: Named, step: str, model: Any, seconds: float) -> Row:
    """The figures of a model after a step."""
    apply, params, cost = model
    found = partial(accuracy, apply, params)
    return {
        **{"key": name.key(step), **name._asdict(), "step": step},
        **{"test": found(p.data.test), "validation": found(p.data.validation)},
        **{"params": cost.params, "flops": cost.flops, "seconds": seconds},
    }


def distilled(p: Parent, start: Start, name: Named) -> Any:
    """Some epochs without labels; statistics move at first.

    They let a training go in large steps, and are noise to answers that are numbers:
    where there are any, they stay as they are at the end.
    """
    apply = cj.shrink(p.apply, p.graph, start.keep)
    moving = cj.shrink(p.train_apply, p.graph, start.keep)
    params = settle(apply, start.params, calibration(p), progress=False)
    taught = cj.teach(p.apply, p.params, p.data.train, tasks=tuple(p.data.tasks))
    epochs = name.epochs or EPOCHS[p.name][name.budget]
    last = round(LAST * epochs) if 0 in p.data.tasks.values() else 0
    for number, train, rate in (
        (epochs - last, moving, RATE),
        (last, frozen(apply), RATE / 2),
    ):
        if number:
            options = {"epochs": number, "learning_rate": rate}
            params = trained(p, train, params, taught, name.seed, **options)
    return params


def finetuned(p: Parent, apply: Callable[..., Any], params: Any, name: Named) -> Any:
    """A tenth of the parent's steps, with labels too; the best by validation."""
    size, split = RECIPE[p.name].batch_size, p.data.train
    number = RECIPE[p.name].epochs * (len(split.x) // size) // 10
    rows = np.random.default_rng([11, name.seed]).permutation(len(split.x))
    some = take(split, rows[: number * size])
    taught = cj.teach(p.apply, p.params, some, tasks=tuple(p.data.tasks))
    return trained(
        *(p, frozen(apply), params, taught, name.seed),
        epochs=1,
        learning_rate=RATE / 10,
        labels=1.0,
        evaluate=lambda params: accuracy(apply, params, p.data.validation),
    )


def trained(
    p: Parent, train: Any, params: Any, taught: Split, seed: int, **options: Any
) -> Any:
    """Parameters that learnt the parent's answers, tasks balanced."""
    found, _ = cj.finetune(
        *(train, params, taught),
        tasks=tuple(p.data.tasks),
        batch_size=RECIPE[p.name].batch_size,
        balance="uncertainty",
        seed=seed,
        progress=False,
        **options,
    )
    return found


def mean(metrics: dict[str, float]) -> float:
    """Over tasks."""
    return float(np.mean(list(metrics.values())))
