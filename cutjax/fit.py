"""One training loop, for the parent and for the compact models cut from it.

A step is jitted and the loop over steps is Python's. Convolutions inside `lax.scan` are
what XLA's CPU backend does worst: on a ResNet of widths 32, 64, 128 (batch 128, two
shared cores, jax 0.10.2) a scanned step took 6.8 s, a jitted one 0.25 s, a ratio of 27.
Steps are dispatched asynchronously, so the loop costs nothing on top; on small models
without convolutions, and on accelerators, `scan` takes several steps per call.
"""

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding
from tqdm import tqdm

from cutjax import _resume
from cutjax.data.base import Split, as_split
from cutjax.losses import of_classes, summed
from cutjax.training import (
    loop,
    mesh,
    options as opt,
    parts,
    record as rec,
    step as stepping,
)
from cutjax.training.loop import Evaluate, FitInfo, FitState
from cutjax.training.parts import TrainApply
from cutjax.training.step import Loss, Moving


def fit(
    train_apply: TrainApply,
    params: Any,
    loss: Loss,
    data: Split | tuple[Any, dict[str, Any]],
    *,
    optimizer: optax.GradientTransformation,
    opt_state: Any = None,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    evaluate: Evaluate | None = None,
    patience: int | None = None,
    accumulate: int = 1,
    dtype: Any = None,
    ema: float | None = None,
    scan: int = 1,
    augment: stepping.Augment | None = None,
    sharding: jax.sharding.Mesh | Sharding | None = None,
    checkpoint: str | PathLike[str] | None = None,
    save_every: int | float | None = None,
    metrics: str | PathLike[str] | None = None,
    log_every: int | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
    label: str = "",
) -> tuple[Any, FitInfo]:
    """Trains `params` by minibatch gradient descent.

    Every epoch visits the examples in an order that depends only on `seed` and the
    epoch; what does not fill a last update is left out of that epoch.

    Args:
        train_apply: `train_apply(params, x) -> (outputs, updates)`. Top-level keys of
            `params` named in `updates` are state: replaced after each step, never
            differentiated. Without state, `updates` is `{}` or None and `params` may be
            any pytree. Of the rest every floating leaf is trained. Of several inputs,
            a tuple `x`: `train_apply(params, *x)`.
        params: where to start. Never modified.
        loss: `loss(outputs, y) -> (scalar, {name: scalar})`.
        data: `(x, {task: labels})`, moved to the device once; `x` is an array or a
            pytree of arrays with the examples in front.
        optimizer: an optax transformation, schedules included; they count updates.
            Those that ask for them get `value`, `grad` and, unless several steps make
            an update, `value_fn` of the batch: plateaus, line searches. With several,
            `value` is of the last.
        opt_state: of the optimiser, to begin with: from `last_state`, through
            `cut_state` if parameters were cut in between. New, if not given.
        epochs: passes over the data in all; a resumed run makes what is missing.
        batch_size: examples per step.
        seed: order of the examples.
        evaluate: `evaluate(params) -> {name: number}`, higher is better; the parameters
            with the best mean are returned, the starting ones among the candidates; of
            equals the latest, as validation is often too coarse to tell.
        patience: stop after so many epochs in a row that were not better than before.
        accumulate: steps per update, by their mean gradient: what `batch_size` times as
            many examples would do, in the memory of one batch and of that gradient, in
            float32 where that is wider.
        dtype: compute in this type, `jnp.bfloat16`; parameters, optimiser, state and
            loss keep theirs.
        ema: decay per update of an average of the parameters and the state. It is
            evaluated and returned in their place, in their type but kept in float32
            where that is wider; debiased, so it starts at no zeros.
            Under masks that change it still holds what an earlier mask let through.
        scan: steps per compiled call. More than one pays where a step is short; on CPU
            never with convolutions.
        augment: `augment(key, x) -> x`, done to every batch within the compiled step;
            the key depends only on `seed` and the step. Targets stay as they are; a
            parent that is asked within the step (`finetune`) sees what was made.
        sharding: a mesh, or a `NamedSharding` of the examples: batches are divided, all
            else is repeated on every device.
        checkpoint: directory that keeps the run after each epoch, created if missing. A
            later call with the same arguments resumes from it, bit for bit on one CPU,
            whenever it was interrupted. `epochs`, `patience` may be others, `sharding`,
            `scan`, too: these change how sums are rounded. What functions do it cannot
            see: tell it by `settings`.
        save_every: keep it within epochs too: every so many steps (an integer) or
            seconds (a float).
        metrics: file of one JSON object per line: `kind` "epoch" with what `history`
            holds. A resumed run goes on with it, any other run starts it anew.
        log_every: lines of `kind` "steps" too: means over so many steps.
        settings: what `loss`, `optimizer` and other functions were made of, by name, as
            values of JSON: `{"learning_rate": 0.1}`, and `epochs` where the schedule
            depends on them. A checkpoint of other settings is another run's.
        progress: show a progress bar.
        label: what the progress bar calls the run.

    Returns:
        `(params, info)`: the best parameters (the last ones without `evaluate`).

    Raises:
        ValueError: no data, options that do not fit it or each other, updates that do
            not belong to `params`, a loss or an `evaluate` that returns something else,
            a checkpoint of another run.
        CheckpointError: no checkpoint of this run is whole, or none can be kept.
        FloatingPointError: the loss is not finite, or an update made parameters so.

    Example:
        >>> import numpy as np
        >>> data = Split(np.ones((8, 1, 1, 1), np.float32), {"y": np.ones(8)})
        >>> apply = lambda w, x: (w * x.mean((1, 2, 3)), None)
        >>> loss = lambda out, y: (jnp.mean((out - y["y"]) ** 2), {})
        >>> w, info = fit(apply, jnp.zeros(()), loss, data, optimizer=optax.sgd(0.5),
        ...               epochs=3, batch_size=4, progress=False)
        >>> round(float(w), 3), len(info.history)
        (1.0, 4)
    """
    data = as_split(data, "fit")
    options = opt.Options(
        epochs,
        batch_size,
        seed=seed,
        accumulate=accumulate,
        dtype=dtype,
        ema=ema,
        patience=patience,
        scan=scan,
        save_every=save_every,
        log_every=log_every,
    )
    options = opt.plain(options)
    given = {"evaluate": evaluate, "checkpoint": checkpoint, "metrics": metrics}
    steps = opt.check(options, data, given)
    where = mesh.layout(sharding, options.batch_size)
    params = jax.tree.map(jnp.asarray, params)
    x = opt.batch(options.batch_size, data, augment)
    names = parts.state_names(train_apply, params, x)
    state = _begun(params, optimizer, names, options, opt_state)
    if where is not None:
        state = jax.device_put(state, where.whole)
    place, info, keep = rec.Place(), None, None
    if checkpoint is not None:
        _resume.check_folder(checkpoint)
        begun = params if opt_state is None else (params, opt_state)
        course = opt.course(options, names, augmented=augment is not None)
        run = _resume.fingerprint(state, begun, data, **{**(settings or {}), **course})
        if found := _resume.load(checkpoint, run, state):
            place, info = _resumed(found[2])
            state = mesh.untied(found[1], state)
        keep = _keeper(checkpoint, run, steps)
    step = _step(train_apply, loss, optimizer, names, options, where, augment)
    moved = jax.device_put((data.x, data.y), where and where.whole)
    job = loop.Run(step, moved, steps, options, evaluate, keep, metrics)
    if metrics is not None:
        rec.open_lines(metrics, loop.done(place, steps), resumed=info is not None)
    if info is None:
        info = loop.first(job, state.best)
    left = max(steps * options.epochs - loop.done(place, steps), 0)
    with tqdm(total=left, desc=label or "fit", disable=not (progress and left)) as bar:
        return loop.train(job, state, info, place, bar)


def last_state(
    checkpoint: str | PathLike[str],
    params: Any,
    optimizer: optax.GradientTransformation,
) -> Moving:
    """What the last step that a checkpoint knows left: not the best, the newest.

    Args:
        checkpoint: directory given to `fit`.
        params: of the run, or their shapes in arrays of any value.
        optimizer: of the run.

    Returns:
        The parameters, the optimiser's state and, where the run had them, the average
        and the gradients gathered, both of 32 bits at least.

    Raises:
        CheckpointError: there is none, or none that is whole.
        ValueError: it belongs to other parameters or another optimiser.

    Example:
        `params` and `tx` were trained with `checkpoint="run"`; the cut network goes on
        with their momenta:

            moving = last_state("run", params, tx)
            small_apply, small = cj.cut(apply, moving.params, graph, keep)
            opt_state = cj.cut_state(moving.opt_state, graph, keep)
            fit(small_apply, small, ..., optimizer=tx, opt_state=opt_state)
    """
    run = _resume.newest(checkpoint)
    options = {"accumulate": run["accumulate"], "ema": run["ema"]}
    params = jax.tree.map(jnp.asarray, params)
    moving = stepping.begin(params, optimizer, tuple(run["updated"]), **options)
    like = FitState(moving, params)
    asked = {**run, "shapes": _resume.fingerprint(like, (), ())["shapes"]}
    found = _resume.load(checkpoint, asked, like)
    return mesh.untied(found[1], like).moving if found else moving


def cross_entropy(
    tasks: Mapping[str, Any] | tuple[str, ...] | list[str],
    weights: Mapping[str, float] | None = None,
) -> Loss:
    """The sum over tasks of the mean softmax cross entropy with integer labels.

    `cutjax.losses.summed(losses_for(data))` is the same for tasks with classes, and
    knows numbers too.

    Args:
        tasks: names of the tasks to train.
        weights: factor per task, 1 where one is not named.

    Returns:
        `loss(outputs, y) -> (scalar, {task: its unweighted cross entropy})`.

    Raises:
        ValueError: no tasks, a weight for a task that is not among them, or a task of
            0 classes.
    """
    classes = tasks if isinstance(tasks, Mapping) else {}
    if numbers := [task for task in tasks if classes.get(task) == 0]:
        raise ValueError(
            f"cross_entropy: {numbers} have 0 classes, so they ask for a number; use "
            "cutjax.losses.summed(losses_for(data))"
        )
    return summed(dict.fromkeys(tasks, of_classes), weights)


def _begun(
    params: Any,
    optimizer: optax.GradientTransformation,
    names: tuple[str, ...],
    options: opt.Options,
    opt_state: Any,
) -> FitState:
    """The state before the first step."""
    parts = {"accumulate": options.accumulate, "ema": options.ema}
    moving = stepping.begin(params, optimizer, names, **parts)
    if opt_state is not None:
        stepping.check_opt_state(opt_state, moving.opt_state)
        moving = moving._replace(opt_state=jax.tree.map(jnp.asarray, opt_state))
    return FitState(moving, params)


def _step(
    train_apply: TrainApply,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    names: tuple[str, ...],
    options: opt.Options,
    where: mesh.Layout | None,
    augment: stepping.Augment | None,
) -> Callable[..., Any]:
    """The compiled step."""
    if options.dtype is not None:
        train_apply = parts.lowered(train_apply, options.dtype, names)
    step = stepping.make_step(
        train_apply,
        loss,
        optimizer,
        names,
        accumulate=options.accumulate,
        ema=options.ema,
        where=where,
        augment=augment,
        seed=options.seed,
    )
    return stepping.compiled(step, options.scan)


def _resumed(kept: Mapping[str, Any]) -> tuple[rec.Place, FitInfo]:
    place = rec.place_of(kept["place"])
    return place, FitInfo(**kept["info"], resumed_from=place.epoch - 1)


def _keeper(
    folder: str | PathLike[str], run: Mapping[str, Any], steps: int
) -> Callable[[rec.Place, FitState, FitInfo], None]:
    def keep(place: rec.Place, state: FitState, info: FitInfo) -> None:
        facts = {k: v for k, v in info._asdict().items() if k != "resumed_from"}
        kept = {"place": place._asdict(), "info": facts}
        _resume.save(folder, loop.done(place, steps), dict(run), state, kept)

    return keep
