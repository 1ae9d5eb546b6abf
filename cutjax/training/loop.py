"""The loop over epochs and steps, which may begin anywhere within."""

import math
import time
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Int

from cutjax.data.examples import count
from cutjax.training import options as opt, record as rec
from cutjax.training.finite import check_finite
from cutjax.training.parts import of_type
from cutjax.training.step import Moving

Evaluate = Callable[[Any], Mapping[str, float]]

UNSCORED = -math.inf
"""Of an epoch that nothing evaluated: any other is better."""


class FitInfo(NamedTuple):
    """What happened during `fit`, for the person.

    Attributes:
        history: one dict per epoch: `epoch` (0 is the start), `seconds`; `loss` and the
            metrics of the loss as means over the epoch; with `evaluate`, `validation`
            (what it returned) and its `mean`. With `patience` there may be fewer epochs
            than asked for.
        best_epoch: the epoch whose parameters were returned.
        seconds: time spent, earlier interrupted runs included.
        resumed_from: epochs that came from the checkpoint.
    """

    history: list[dict[str, Any]]
    best_epoch: int
    seconds: float
    resumed_from: int = 0


class FitState(NamedTuple):
    """What the loop carries, for the machine: what steps change, best parameters."""

    moving: Moving
    best: Any


class Run(NamedTuple):
    """What does not change during a run."""

    step: Callable[..., Any]
    data: tuple[Array, dict[str, Array]]
    steps: int
    options: opt.Options
    evaluate: Evaluate | None
    keep: Callable[[rec.Place, FitState, FitInfo], None] | None
    metrics: str | PathLike[str] | None


def done(place: rec.Place, steps: int) -> int:
    """Steps that are done, over all epochs."""
    return (place.epoch - 1) * steps + place.step


def train(
    run: Run, state: FitState, info: FitInfo, place: rec.Place, bar: Any
) -> tuple[Any, FitInfo]:
    """All epochs that are left.

    Args:
        run: what does not change.
        state: where to begin.
        info: what happened so far.
        place: how far that is.
        bar: of tqdm.

    Returns:
        `(params, info)`, see `cutjax.fit.fit`.
    """
    while place.epoch <= run.options.epochs and not _weary(info, run.options.patience):
        state, place = _epoch(run, state, info, place, bar)
        began = time.perf_counter()
        shown = _shown(state.moving)
        check_finite(shown, state.best, place)
        score = _score(run.evaluate, shown, place.epoch)
        seconds = place.seconds + time.perf_counter() - began
        # A task may be called like one of these: theirs come last.
        ours = {"epoch": place.epoch, **score, "seconds": seconds}
        record = {"epoch": place.epoch, **rec.means(place.tally), **ours}
        state, info = _judge(state, info, record, run.evaluate is not None)
        bar.set_postfix(_summary(record))
        if run.metrics is not None:
            rec.write_line(run.metrics, "epoch", done(place, run.steps), record)
        place = rec.Place(place.epoch + 1)
        if run.keep is not None:
            run.keep(place, state, info)
    return state.best, info


def _weary(info: FitInfo, patience: int | None) -> bool:
    best = _best(info)
    if patience is None or best == UNSCORED:
        return False
    # Of epochs as good as the best the last is returned; the first counts here.
    first = next(r for r in info.history if r.get("mean") == best)
    return info.history[-1]["epoch"] - first["epoch"] >= patience


def _best(info: FitInfo) -> float:
    best = next(r for r in info.history if r["epoch"] == info.best_epoch)
    return best.get("mean", UNSCORED)


def _epoch(
    run: Run, state: FitState, info: FitInfo, place: rec.Place, bar: Any
) -> tuple[FitState, rec.Place]:
    """The steps that are left of an epoch."""
    size, scan = run.options.batch_size, run.options.scan
    n = count(run.data[0], "fit")
    order = _order(n, (run.steps, size), run.options.seed, place.epoch)
    clock = saved = time.perf_counter()
    since, pending, before = place.step, [], place.seconds
    numbers = np.arange(run.steps, dtype=np.int32) + (place.epoch - 1) * run.steps
    for start in range(place.step, run.steps, scan):
        part = slice(start, start + scan) if scan > 1 else start
        moving, seen = run.step(state.moving, (order[part], numbers[part]), *run.data)
        state, stop = state._replace(moving=moving), min(start + scan, run.steps)
        pending.append(seen)
        bar.update(stop - start)
        last, now = stop == run.steps, time.perf_counter()
        save = not last and _due(run.options.save_every, stop - since, now - saved)
        log = _due(run.options.log_every, stop - place.step + place.window.count, 0.0)
        if save or log or last:
            # Waits for these steps: here, and not in every step.
            place, pending = rec.tallied(place, pending), []
            place = place._replace(seconds=before + time.perf_counter() - clock)
        if log:
            place = _logged(run, place)
        if save and run.keep is not None:
            check_finite(_shown(state.moving), state.best, place)
            run.keep(place, state, info)
            since, saved = stop, time.perf_counter()
    return state, place


def _due(every: int | float | None, steps: int, seconds: float) -> bool:
    if every is None:
        return False
    return steps >= every if isinstance(every, int) else seconds >= every


def _logged(run: Run, place: rec.Place) -> rec.Place:
    if run.metrics is not None:
        ours = {"epoch": place.epoch, "seconds": place.seconds}
        record = {"epoch": place.epoch, **rec.means(place.window), **ours}
        rec.write_line(run.metrics, "steps", done(place, run.steps), record)
    return place._replace(window=rec.Tally())


def _order(
    n: int, shape: tuple[int, int], seed: int, epoch: int
) -> Int[np.ndarray, "steps b"]:
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return order[: math.prod(shape)].reshape(shape).astype(np.int32)


def first(run: Run, params: Any) -> FitInfo:
    """The info before the first step.

    The starting point is a candidate: fine-tuning must not make a model worse.

    Args:
        run: what does not change.
        params: the start.

    Returns:
        An info of epoch 0.
    """
    began = time.perf_counter()
    record = {"epoch": 0, **_score(run.evaluate, params, 0)}
    record["seconds"] = seconds = time.perf_counter() - began
    if run.metrics is not None:
        rec.write_line(run.metrics, "epoch", 0, record)
    return FitInfo([record], 0, seconds)


def _score(evaluate: Evaluate | None, params: Any, epoch: int) -> dict[str, Any]:
    if evaluate is None:
        return {}
    found = evaluate(params)
    values = _numbers(found)
    if not values or not all(map(math.isfinite, values.values())):
        raise ValueError(
            f"fit: evaluate returned {values or found} at epoch {epoch}; expected "
            'finite numbers by name, higher is better, such as {"accuracy": 0.9}'
        )
    return {"validation": values, "mean": sum(values.values()) / len(values)}


def _numbers(found: Any) -> dict[str, float]:
    """What `evaluate` returned, in Python's floats; empty if that cannot be."""
    try:
        return {name: float(value) for name, value in found.items()}
    except (AttributeError, TypeError, ValueError):
        return {}


def _shown(moving: Moving) -> Any:
    if moving.average is None:
        return moving.params
    return of_type(moving.average, moving.params)


def _judge(
    state: FitState, info: FitInfo, record: dict[str, Any], scored: bool
) -> tuple[FitState, FitInfo]:
    beaten = scored and record["mean"] < _best(info)
    seconds = info.seconds + record["seconds"]
    info = info._replace(history=[*info.history, record], seconds=seconds)
    if beaten:
        return state, info
    best = _shown(state.moving)
    return state._replace(best=best), info._replace(best_epoch=record["epoch"])


def _summary(record: dict[str, Any]) -> dict[str, str]:
    shown = {"loss": record["loss"]}
    if isinstance(record.get("validation"), Mapping):
        shown |= record["validation"]
    return {name: f"{value:.4g}" for name, value in shown.items()}
