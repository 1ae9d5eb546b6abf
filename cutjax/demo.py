"""The main job, end to end: a multi-task parent cut for two different subsets of tasks.

Every recipe spends the same budget on the same parent; seeds draw the calibration
scenes, the random channels and the order of distillation. Calibration data choose and
compensate, training data distil, without their labels; test data only measure.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from cutjax import bench, demo_table
from cutjax.allocate import greedy, uniform
from cutjax.budget import Budget
from cutjax.data import Dataset, Split, batches, digits_scenes, take
from cutjax.graph import Graph
from cutjax.losses import losses_for
from cutjax.metrics import accuracy
from cutjax.models import eval_apply, train_apply
from cutjax.models.reference import train_reference
from cutjax.plan import plan
from cutjax.recover import compensate, finetune, teach
from cutjax.saliency import joint, l1, random, taylor
from cutjax.shrink import cut, shrink
from cutjax.trace import trace

SUBSETS = (("left", "larger"), ("right", "sum_parity"))
BUDGETS = (
    Budget(params=0.32, flops=0.32, multiple=16),
    Budget(params=0.10, flops=0.12, multiple=8),
)
CALIBRATION = 512
DISTILLED = 9000


class Job(NamedTuple):
    """The parent and all that is derived from it once."""

    apply: Callable[..., Any]
    train_apply: Callable[..., Any]
    params: Any
    data: Dataset
    graph: Graph
    losses: dict[str, Callable[..., Any]]


class Model(NamedTuple):
    """A compact model: how it was made, its function and its parameters."""

    recipe: str
    seed: int
    tasks: tuple[str, ...]
    budget: Budget
    keep: dict[str, np.ndarray]
    apply: Callable[..., Any]
    params: Any
    seconds: float


def demo(out: Path, *, seeds: int = 3, progress: bool = True) -> list[dict[str, Any]]:
    """Train the parent (or find it trained), cut it every way, measure, print, write.

    Args:
        out: folder for `results.json`; the parent is kept in `parent` beside it.
        seeds: number of cuts per recipe.
        progress: show progress bars.

    Returns:
        One row per recipe, subset, budget and seed: `recipe`, `tasks`, `seed`,
        `budget`, `metrics` (test accuracy in percent), `params`, `trunk_params`,
        `flops`, `latency_ms` (median, batch 1, one thread, best compiler setting), ...
    """
    out = Path(out)
    job = prepare(out.parent / "parent", progress=progress)
    work = [(s, b, seed) for s in SUBSETS for b in BUDGETS for seed in range(seeds)]
    scores: dict[int, dict[str, Any]] = {}
    models: list[Model] = []
    taught = {s: teach(job.apply, job.params, job.data.train, tasks=s) for s in SUBSETS}
    bar = tqdm(work, desc="cutting", disable=not progress)
    for subset, budget, seed in bar:
        bar.set_postfix_str(f"{'+'.join(subset)} at {budget.params:g}, seed {seed}")
        if seed not in scores:
            scores[seed] = _scores(job, seed)
        models += _recipes(job, scores[seed], subset, budget, seed, taught[subset])
    rows = _measure(job, models, progress)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    demo_table.show(rows)
    return rows


def prepare(folder: Path, *, progress: bool = True) -> Job:
    """The reference parent on the bundled scenes, trained once and kept in `folder`."""
    data = digits_scenes()
    kept = folder / "fit"
    model, params, _ = train_reference(data, checkpoint=kept, progress=progress)
    apply = eval_apply(model)

    graph = trace(apply, params, data.train.x[:1])
    return Job(apply, train_apply(model), params, data, graph, losses_for(data))


def calibration(job: Job, seed: int) -> list[Any]:
    """Batches of calibration scenes drawn by a seed."""
    rows = np.random.default_rng(seed).permutation(len(job.data.calibration.x))
    return list(batches(take(job.data.calibration, rows[:CALIBRATION]), 128))


def _scores(job: Job, seed: int) -> dict[str, Any]:
    """Scores by criterion; the data-driven ones read the calibration data of a seed."""
    args = (job.apply, job.params, job.graph, job.losses)
    return {
        "l1": l1(*args),
        "random": random(*args, seed=seed),
        "taylor": taylor(*args, calibration(job, seed), progress=False),
        "joint": joint(*args, calibration(job, seed), progress=False),
    }


def _recipes(
    job: Job, scores: dict[str, Any], subset, budget: Budget, seed: int, taught: Split
) -> Iterator[Model]:
    """Every recipe at one budget, for one subset and seed."""
    data = calibration(job, seed)

    def make(recipe: str, criterion: str, allocate=greedy) -> Model:
        start = time.perf_counter()
        found = scores[criterion]
        keep, _ = plan(job.graph, found, tasks=subset, budget=budget, allocate=allocate)
        apply, params = cut(job.apply, job.params, job.graph, keep, subset)
        seconds = time.perf_counter() - start
        return Model(recipe, seed, subset, budget, keep, apply, params, seconds)

    def compensated(recipe: str, model: Model) -> Model:
        start = time.perf_counter()
        full = (job.apply, job.params, job.graph, model.keep, data)
        params, _ = compensate(*full, tasks=subset, progress=False)
        seconds = model.seconds + time.perf_counter() - start
        return model._replace(recipe=recipe, params=params, seconds=seconds)

    # Uniform and L1 look at no data: their rows are the same for all seeds.
    yield make("uniform", "l1", uniform)
    by_chance = make("random", "random", uniform)
    yield by_chance
    yield make("l1", "l1")
    by_taylor = make("taylor", "taylor")
    yield by_taylor
    yield compensated("random+compensation", by_chance)
    yield compensated("taylor+compensation", by_taylor)
    by_joint = compensated("joint+compensation", make("joint", "joint"))
    yield by_joint
    yield _distilled(job, by_joint, taught)


def _distilled(job: Job, fitted: Model, taught: Split) -> Model:
    """The full recipe: an epoch of distillation from the parent, without labels."""
    start = time.perf_counter()
    rows = np.random.default_rng(fitted.seed).permutation(len(taught.x))[:DISTILLED]
    params, _ = finetune(
        shrink(job.train_apply, job.graph, fitted.keep, fitted.tasks),
        fitted.params,
        take(taught, rows),
        tasks=fitted.tasks,
        epochs=1,
        seed=fitted.seed,
        progress=False,
    )
    seconds = fitted.seconds + time.perf_counter() - start
    return fitted._replace(recipe="cutjax", params=params, seconds=seconds)


def _measure(job: Job, models: list[Model], progress: bool) -> list[dict[str, Any]]:
    """A row per model; models of the same shapes share one timing."""
    whole = Budget(params=1.0)
    parents = [
        Model("parent", 0, s, whole, {}, *_parent(job, s), seconds=0.0) for s in SUBSETS
    ]
    everyone = parents + models
    shapes = [_widths(model) for model in everyone]
    unique = dict(zip(shapes, everyone, strict=True))
    names = {key: f"model {n}" for n, key in enumerate(unique)}
    timings = bench.measure(
        {names[key]: (m.apply, m.params) for key, m in unique.items()},
        jax.ShapeDtypeStruct((1, *job.data.test.x.shape[1:]), np.float32),
        batch_sizes=(1,),
        threads=(1,),
        rounds=3,
        progress=progress,
    )
    rows = []
    for i, model in enumerate(tqdm(everyone, desc="testing", disable=not progress)):
        best = bench.best(timings, names[shapes[i]], 1, 1)
        rows.append(_row(job, model, best))
    return rows


def _parent(job: Job, tasks: tuple[str, ...]) -> tuple[Callable[..., Any], Any]:
    """The parent answering some tasks: what a device would run without a cut."""
    return cut(job.apply, job.params, job.graph, {}, tasks)


def _widths(model: Model) -> tuple[Any, ...]:
    shapes = (leaf.shape for leaf in jax.tree.leaves(model.params))
    return model.tasks, tuple(shapes)


def _row(job: Job, model: Model, timing: bench.Timing) -> dict[str, Any]:
    cost = job.graph.cost(model.keep, model.tasks)
    test = accuracy(model.apply, model.params, job.data.test, tasks=model.tasks)
    return {
        "recipe": model.recipe,
        "tasks": list(model.tasks),
        "seed": model.seed,
        "budget": model.budget.params,
        "metrics": {task: round(value, 3) for task, value in test.items()},
        "params": cost.params,
        "trunk_params": cost.trunk_params,
        "flops": cost.flops,
        "latency_ms": timing.median_ms,
        "latency_p10_ms": timing.p10_ms,
        "latency_p90_ms": timing.p90_ms,
        "setting": timing.setting,
        "cut_seconds": round(model.seconds, 2),
        "widths": {name: int(mask.sum()) for name, mask in model.keep.items()},
    }
