"""What `cutjax cut` does: score, plan, cut, compensate, distil, and test each stage."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from cutjax import allocate, criteria, fuse, normalize
from cutjax.budget import Budget
from cutjax.data import Split, batches, take
from cutjax.data.examples import count, inputs_in
from cutjax.errors import BudgetError, DataError, MismatchError
from cutjax.graph import Graph
from cutjax.losses import losses_for
from cutjax.metrics import accuracy, named
from cutjax.pareto import worst_case
from cutjax.plan import PlanInfo, plan
from cutjax.recover import compensate, finetune, settle, teach
from cutjax.recover.normal import check_damping
from cutjax.saliency import saliency
from cutjax.shrink import cut, shrink
from cutjax.source import Job, SourceError, graph_of

BATCH = 128


class Settings(NamedTuple):
    """The options of `cutjax cut`, checked; see its help."""

    tasks: tuple[str, ...] | None
    budget: Budget
    criterion: Any
    plan: Callable[..., Any]
    calibration: int
    damping: float | None
    finetune_epochs: int
    learning_rate: float
    seed: int
    progress: bool


class Result(NamedTuple):
    """The compact model and how it came about.

    `test`: accuracy in percent per stage and task. `seconds`: per step. `history`: of
    the distillation, per epoch.
    """

    apply: Callable[..., Any]
    params: Any
    graph: Graph
    keep: dict[str, np.ndarray]
    info: PlanInfo
    test: dict[str, dict[str, float]]
    seconds: dict[str, float]
    history: list[dict[str, Any]]


def checked(args: Any) -> Settings:
    """Settings from the arguments, before anything is loaded.

    Raises:
        BudgetError: no budget, or one that is neither a share nor a number.
        DataError: a number of examples or epochs that makes no sense.
    """
    params, flops = _amount("params", args.params), _amount("flops", args.flops)
    if params is None and flops is None:
        raise BudgetError("no budget; give --params 0.32, --flops 0.35, or both")
    if args.calibration < 1 or args.finetune_epochs < 0 or args.learning_rate <= 0:
        raise DataError(
            f"--calibration {args.calibration} needs an example or more, "
            f"--finetune-epochs {args.finetune_epochs} 0 or more, --learning-rate "
            f"{args.learning_rate} a number above 0"
        )
    check_damping(args.damping, "--damping")
    return Settings(
        tasks=args.tasks or None,
        budget=Budget(params, flops, multiple=args.multiple),
        criterion=_criterion(args.criterion, args.seed),
        plan=_planner(args),
        calibration=args.calibration,
        damping=args.damping,
        finetune_epochs=args.finetune_epochs,
        learning_rate=args.learning_rate,
        seed=args.seed,
        progress=args.progress,
    )


def _criterion(name: str, seed: int) -> Any:
    """A criterion by name; what draws, by the seed."""
    make = criteria.ALL[name].make
    return make(seed=seed) if name in ("random", "hessian") else make()


def _planner(args: Any) -> Callable[..., Any]:
    by = {
        "normalize": getattr(normalize, args.normalize),
        "allocate": getattr(allocate, args.allocate),
    }
    if args.fuse == "worst_case":
        return partial(worst_case, **by)
    return partial(plan, fuse=getattr(fuse, args.fuse), **by)


def _amount(name: str, value: float | None) -> float | int | None:
    """A share as a float, a number as an int."""
    if value is None or value <= 1:
        return value
    if not value.is_integer():
        raise BudgetError(f"--{name} {value}: a share of at most 1, or a whole number")
    return int(value)


def compact(job: Job, s: Settings) -> Result:
    """Makes the compact model.

    Args:
        job: the full model and its data.
        s: the settings.

    Returns:
        The model, tested after every stage.
    """
    train_apply = _training(job) if s.finetune_epochs else None
    clock = _Clock()
    graph = graph_of(job.apply, job.params, job.dataset)
    tasks = graph.check_tasks(s.tasks or tuple(job.dataset.tasks))
    data = _calibration(job, s)
    losses = losses_for(job.dataset, tasks)
    full = (job.apply, job.params, graph)
    scores = saliency(*full, losses, data, criterion=s.criterion, progress=s.progress)
    clock.note("score")
    keep, info = s.plan(graph, scores, tasks=tasks, budget=s.budget)
    apply, params = cut(*full, keep, tasks)
    test = partial(accuracy, split=job.dataset.test, tasks=tasks)
    stages = {"full": test(job.apply, job.params), "cut": test(apply, params)}
    clock.note("plan, cut and test")
    params, _ = compensate(
        *full, keep, data, tasks=tasks, damping=s.damping, progress=s.progress
    )
    clock.note("compensate")
    stages["compensated"] = test(apply, params)
    history: list[dict[str, Any]] = []
    if train_apply is not None:
        small = shrink(train_apply, graph, keep, tasks)
        params = _settled(small, apply, params, data)
        params, history = _distilled(job, s, small, apply, params, tasks)
        clock.note("distil")
        stages["distilled"] = test(apply, params)
    return Result(apply, params, graph, keep, info, stages, clock.seconds, history)


class _Clock:
    """Seconds between notes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def note(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = round(now - self._last, 3), now


def _training(job: Job) -> Callable[..., Any]:
    """The function in training; that in inference where there is no other."""
    if job.train_apply is not None:
        return job.train_apply
    if isinstance(job.params, Mapping) and "batch_stats" in job.params:
        raise SourceError(
            "the source's params hold 'batch_stats' but its train_apply is None, and "
            "distillation would train the statistics as weights; give a train_apply, "
            "such as cutjax.models.train_apply(model), or --finetune-epochs 0"
        )
    return lambda params, *x: (job.apply(params, *x), None)


def _calibration(job: Job, s: Settings) -> list[Any]:
    """Equal batches of calibration examples drawn by the seed."""
    split = job.dataset.calibration
    rows = np.random.default_rng(s.seed).permutation(count(split.x, "data"))
    rows = rows[: s.calibration]
    chosen = take(split, rows)
    return list(batches(chosen, min(BATCH, len(rows)), drop_last=True))


def _settled(
    train: Callable[..., Any], apply: Callable[..., Any], params: Any, data: list[Any]
) -> Any:
    """Statistics that the first steps of a training do not upset, if there are any."""
    moving = jax.eval_shape(train, params, *inputs_in(data[0][0]))[1]
    try:
        return settle(apply, params, data, state=moving or (), progress=False)
    except MismatchError:
        return params


def _distilled(
    job: Job,
    s: Settings,
    small: Callable[..., Any],
    apply: Callable[..., Any],
    params: Any,
    tasks: Sequence[str],
) -> tuple[Any, list[dict[str, Any]]]:
    """Trains the compact model towards the full one's answers, without labels."""
    train: Split = teach(
        lambda p, *x: named(job.apply(p, *x)),
        job.params,
        job.dataset.train,
        tasks=tasks,
    )
    validation = job.dataset.validation
    params, info = finetune(
        lambda p, *x: _named(small(p, *x)),
        params,
        train,
        tasks=tasks,
        epochs=s.finetune_epochs,
        batch_size=min(64, count(train.x, "data")),
        learning_rate=s.learning_rate,
        seed=s.seed,
        evaluate=lambda p: accuracy(apply, p, validation, tasks=tasks),
        progress=s.progress,
    )
    return params, info.history


def _named(made: tuple[Any, Any]) -> tuple[Any, Any]:
    outputs, updates = made
    return named(outputs), updates
