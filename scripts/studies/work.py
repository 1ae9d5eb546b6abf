"""What a worker does: scores of a seed, and the figures of a cell."""

import functools
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import cutjax as cj
from cutjax import allocate, criteria, fuse, normalize
from cutjax.data import Split, batches, take
from cutjax.errors import BudgetError
from cutjax.metrics import accuracy
from cutjax.models import init
from cutjax.pareto import worst_case
from cutjax.recipes import reinitialise
from cutjax.recover.finetune import frozen
from cutjax.shrink import cut, mask, shrink
from studies import parents, real
from studies.grid import Cell
from studies.methods import CRITERIA, IMAGES, OPTIONS, Method
from studies.parents import RECIPES, Parent

CALIBRATION, BATCH = 512, 128

Scores = dict[str, dict[str, dict[str, np.ndarray]]]


@functools.cache
def parent(name: str, root: Path) -> Parent:
    """A data set's parent, read once per worker (trained, if need be)."""
    data = real.load(name, root / "data")
    return parents.parent(data, root / "parents" / name, progress=False)


@functools.cache
def taught(name: str, root: Path) -> Split:
    """The training data with the parent's answers to all tasks."""
    p = parent(name, root)
    return cj.teach(p.apply, p.params, p.data.train, tasks=tuple(p.data.tasks))


def some(split: Split, n: int) -> Split:
    """The same `n` examples always."""
    rows = np.random.default_rng(0).permutation(len(split.x))[:n]
    return take(split, np.sort(rows))


def calibration(p: Parent, seed: int) -> list[Any]:
    """Batches of calibration examples drawn by a seed."""
    split = p.data.calibration
    rows = np.random.default_rng([7, seed]).permutation(len(split.x))[:CALIBRATION]
    return list(batches(take(split, rows), BATCH))


def scored(name: str, root: Path, seed: int) -> dict[str, float]:
    """Scores of all criteria by one sample of calibration data, kept in a file.

    Returns:
        Seconds that the pass took, and those of the CPU; 0 if it was made before.
    """
    path = _scores_file(name, root, seed)
    held = _read_scores(path) if path.exists() else {}
    missing = {n: criteria.ALL[n] for n in CRITERIA if n not in held}
    if not missing:
        return {"seconds": 0.0, "cpu": 0.0}
    began, spent = time.perf_counter(), time.process_time()
    p = parent(name, root)
    options = {**OPTIONS, "random": {"seed": seed}}
    chosen = {n: make(**options.get(n, {})) for n, make in missing.items()}
    args = (p.apply, p.params, p.graph, p.losses, calibration(p, seed))
    found = cj.saliency(*args, criterion=chosen, progress=False)
    _write_scores(path, {**held, **found})
    scores.cache_clear()
    clocks = (time.perf_counter() - began, time.process_time() - spent)
    return dict(zip(("seconds", "cpu"), clocks, strict=True))


@functools.lru_cache(maxsize=6)
def scores(name: str, root: Path, seed: int) -> Scores:
    """What `scored` wrote."""
    return _read_scores(_scores_file(name, root, seed))


def _scores_file(name: str, root: Path, seed: int) -> Path:
    return root / "scores" / f"{name}_{seed}.npz"


def _read_scores(path: Path) -> Scores:
    out: Scores = {}
    with np.load(path) as file:
        for key in file.files:
            criterion, task, group = key.split("|")
            out.setdefault(criterion, {}).setdefault(task, {})[group] = file[key]
    return out


def _write_scores(path: Path, found: Scores) -> None:
    flat = {
        f"{criterion}|{task}|{group}": np.asarray(values)
        for criterion, by_task in found.items()
        for task, groups in by_task.items()
        for group, values in groups.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, **flat)  # type: ignore[arg-type]
    part.rename(path)


def reference(name: str, root: Path) -> dict[str, Any]:
    """The parent's own row: its figures on all images, on some, and on validation."""
    p = parent(name, root)
    test = partial(accuracy, p.apply, p.params)
    cost = p.graph.cost()
    return {
        "metrics": test(p.data.test),
        "some": test(some(p.data.test, IMAGES)),
        "validation": test(p.data.validation),
        "params": cost.params,
        "flops": cost.flops,
        "seconds": p.seconds,
        "sizes": {s: len(getattr(p.data, s).x) for s in ("train", "test")},
        "steps": parents.steps(name, len(p.data.train.x)),
        "distil": RECIPES[name].distil,
    }


def unit(cells: list[Cell], root: Path) -> list[dict[str, Any]]:
    """Rows of cells that differ by their seed; equal choices are evaluated once."""
    rows, seen = [], {}
    for cell in cells:
        began, spent = time.perf_counter(), time.process_time()
        row = {"key": cell.key, **cell._asdict(), "method": cell.method._asdict()}
        p = parent(cell.data, root)
        try:
            keep, info = planned(p, scores(cell.data, root, cell.seed), cell)
        except BudgetError as error:
            rows.append({**row, "infeasible": str(error)})
            continue
        chosen = b"".join(np.packbits(keep[name]).tobytes() for name in sorted(keep))
        once = cell.stage == "cut" and chosen in seen
        found = seen[chosen] if once else STAGES[cell.stage](p, keep, cell, root)
        seen[chosen] = found
        cost = {"params": info.cost.params, "flops": info.cost.flops}
        full = {"full_params": info.full.params, "full_flops": info.full.flops}
        clocks = {
            "seconds": round(time.perf_counter() - began, 3),
            "cpu": round(time.process_time() - spent, 3),
        }
        rows.append({**row, **found, **cost, **full, **clocks})
    return rows


def planned(p: Parent, found: Scores, cell: Cell) -> tuple[Any, Any]:
    """The channels that a cell's method keeps."""
    method = cell.method
    options: dict[str, Any] = {
        "tasks": cell.tasks,
        "budget": cj.Budget(params=cell.budget),
        "normalize": normalizer(method),
        "allocate": getattr(allocate, method.allocate),
    }
    if method.fuse == "worst_case":
        return worst_case(p.graph, found[method.criterion], **options)
    options["fuse"] = getattr(fuse, method.fuse)
    return cj.plan(p.graph, found[method.criterion], **options)


def normalizer(method: Method) -> normalize.Normalize:
    """A function of `cutjax.normalize`, or what a maker of one makes by default."""
    found = getattr(normalize, method.normalize)
    return found() if method.normalize == "per_cost" else found


def _masked(p: Parent, keep: Any, cell: Cell, root: Path) -> dict[str, Any]:
    """At full size, all tasks at once: one program for all cells of a data set."""
    small = mask(p.params, p.graph, keep)
    found = accuracy(p.apply, small, some(p.data.test, IMAGES), batch_size=IMAGES // 2)
    return {"metrics": {task: found[task] for task in cell.tasks}}


def _made(p: Parent, keep: Any, cell: Cell) -> tuple[Any, Any]:
    """The compact function, and parameters as the method makes them."""
    full = (p.apply, p.params, p.graph)
    apply, small = cut(*full, keep, cell.tasks)
    if cell.method.fresh:
        draw = partial(init, p.model, p.data.train.x[:1], seed=1000 + cell.seed)
        return reinitialise(draw, p.apply, p.graph, keep, tasks=cell.tasks)
    if cell.method.compensate:
        data = calibration(p, cell.seed)
        small, _ = cj.compensate(*full, keep, data, tasks=cell.tasks, progress=False)
    return apply, small


def _tested(p: Parent, apply: Any, params: Any, cell: Cell) -> dict[str, Any]:
    test = partial(accuracy, apply, params, tasks=cell.tasks)
    return {"metrics": test(p.data.test), "validation": test(p.data.validation)}


def _compensated(p: Parent, keep: Any, cell: Cell, root: Path) -> dict[str, Any]:
    apply, small = _made(p, keep, cell)
    return _tested(p, apply, small, cell)


def _distilled(p: Parent, keep: Any, cell: Cell, root: Path) -> dict[str, Any]:
    """The same number of steps for all, towards the parent's answers, no labels."""
    apply, small = _made(p, keep, cell)
    split = taught(cell.data, root)
    steps, size = RECIPES[cell.data].distil, RECIPES[cell.data].batch_size
    rows = np.random.default_rng([11, cell.seed]).permutation(len(split.x))
    # Fitted readers expect the statistics they were fitted with; others need new ones.
    fitted = cell.method.compensate
    train = shrink(p.train_apply, p.graph, keep, cell.tasks)
    small, _ = cj.finetune(
        frozen(apply) if fitted else train,
        small,
        take(split, rows[: steps * size]),
        tasks=cell.tasks,
        epochs=1,
        batch_size=size,
        seed=cell.seed,
        progress=False,
    )
    return _tested(p, apply, small, cell)


STAGES = {"cut": _masked, "compensated": _compensated, "distilled": _distilled}
