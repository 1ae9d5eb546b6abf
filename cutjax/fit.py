"""One training loop, for the parent and for the compact models cut from it.

A step is jitted and the loop over steps is Python's. Convolutions inside `lax.scan` are
what XLA's CPU backend does worst: on a ResNet of widths 32, 64, 128 (batch 128, two
shared cores, jax 0.10.2) a scanned step took 6.8 s, a jitted one 0.25 s, a ratio of 27.
Steps are dispatched asynchronously, so the loop costs nothing on top.
"""

import math
import time
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int
from tqdm import tqdm

from cutjax import _resume
from cutjax.data.base import Split, check_split
from cutjax.losses import of_classes, summed

TrainApply = Callable[[Any, Array], tuple[Any, Mapping[str, Any] | None]]
Evaluate = Callable[[Any], Mapping[str, float]]
Loss = Callable[[Any, dict[str, Array]], tuple[Array, dict[str, Array]]]


class FitInfo(NamedTuple):
    """What happened during `fit`, for the person.

    Attributes:
        history: one dict per epoch: `epoch` (0 is the start), `seconds`; `loss` and the
            metrics of the loss as means over the epoch; with `evaluate`, `validation`
            (what it returned) and its `mean`.
        best_epoch: the epoch whose parameters were returned.
        seconds: time spent, earlier interrupted runs included.
        resumed_from: epochs that came from the checkpoint.
    """

    history: list[dict[str, Any]]
    best_epoch: int
    seconds: float
    resumed_from: int = 0


class FitState(NamedTuple):
    """What the loop carries, for the machine: current and best parameters."""

    params: Any
    opt_state: Any
    best: Any


def fit(
    train_apply: TrainApply,
    params: Any,
    loss: Loss,
    data: Split | tuple[Any, dict[str, Any]],
    *,
    optimizer: optax.GradientTransformation,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    evaluate: Evaluate | None = None,
    checkpoint: str | PathLike[str] | None = None,
    progress: bool = True,
    label: str = "",
) -> tuple[Any, FitInfo]:
    """Trains `params` by minibatch gradient descent.

    Every epoch visits the examples in an order that depends only on `seed` and the
    epoch; what does not fill a last batch is left out of that epoch.

    Args:
        train_apply: `train_apply(params, x) -> (outputs, updates)`. Top-level keys of
            `params` named in `updates` are state: replaced after each step, never
            differentiated. Without state, `updates` is `{}` or None and `params` may be
            any pytree. Of the rest every floating leaf is trained.
        params: where to start. Never modified.
        loss: `loss(outputs, y) -> (scalar, {name: scalar})`.
        data: `(x, {task: labels})`, moved to the device once.
        optimizer: an optax transformation, schedules included.
        epochs: passes over the data in all; a resumed run makes what is missing.
        batch_size: examples per step.
        seed: order of the examples.
        evaluate: `evaluate(params) -> {name: number}`, higher is better; the parameters
            with the best mean are returned, the starting ones among the candidates.
        checkpoint: directory that keeps the run after each epoch, created if missing. A
            later call with the same arguments resumes from it, bit for bit on one CPU.
        progress: show a progress bar.
        label: what the progress bar calls the run.

    Returns:
        `(params, info)`: the best parameters (the last ones without `evaluate`).

    Raises:
        ValueError: no data, `batch_size` or `epochs` that do not fit, updates that do
            not belong to `params`, or a checkpoint of another run.
        FloatingPointError: the loss is not finite.

    Example:
        >>> data = Split(np.ones((8, 1, 1, 1), np.float32), {"y": np.ones(8)})
        >>> apply = lambda w, x: (w * x.mean((1, 2, 3)), None)
        >>> loss = lambda out, y: (jnp.mean((out - y["y"]) ** 2), {})
        >>> w, info = fit(apply, jnp.zeros(()), loss, data, optimizer=optax.sgd(0.5),
        ...               epochs=3, batch_size=4, progress=False)
        >>> round(float(w), 3), len(info.history)
        (1.0, 4)
    """
    data = Split(*data)
    steps = _steps_per_epoch(data, epochs, batch_size)
    names = _state_names(train_apply, params, data, batch_size)
    step = _make_step(train_apply, loss, optimizer, names)
    params = jax.tree.map(jnp.asarray, params)
    state = FitState(params, optimizer.init(_divide(params, names)[0]), params)
    run = {}
    done, info = 0, None
    if checkpoint is not None:
        settings = {"batch_size": batch_size, "seed": seed}
        run = _resume.fingerprint(state, params, data, **settings)
        done, state, info = _resume.load(checkpoint, run, state) or (0, state, None)
        state = jax.tree.map(_untied, state)
    info = FitInfo(**info, resumed_from=done) if info else _first(evaluate, params)
    x, y = jax.device_put((data.x, data.y))
    total = steps * max(epochs - done, 0)
    bar = tqdm(total=total, desc=label or "fit", disable=not progress or total == 0)
    with bar:
        for epoch in range(done + 1, epochs + 1):
            began = time.perf_counter()
            order = _order(len(data.x), (steps, batch_size), seed, epoch)
            state, means = _epoch(step, state, (x, y), order, epoch, bar)
            record = {"epoch": epoch, **means, **_score(evaluate, state.params, epoch)}
            record["seconds"] = time.perf_counter() - began
            state, info = _judge(state, info, record)
            bar.set_postfix(_summary(record))
            if checkpoint is not None:
                _resume.save(checkpoint, epoch, run, state, _facts(info))
    return state.best, info


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


def _steps_per_epoch(data: Split, epochs: int, batch_size: int) -> int:
    n = check_split(data, "fit: data")
    if epochs < 1:
        raise ValueError(f"fit: epochs is {epochs}, expected 1 or more")
    if not 1 <= batch_size <= n:
        raise ValueError(
            f"fit: batch_size {batch_size} does not fit {n} examples; use 1 to {n}"
        )
    return n // batch_size


def _state_names(
    train_apply: TrainApply, params: Any, data: Split, batch_size: int
) -> tuple[str, ...]:
    x = jax.ShapeDtypeStruct((batch_size, *data.x.shape[1:]), data.x.dtype)
    _, updates = jax.eval_shape(train_apply, params, x)
    if not updates:
        return ()
    if not isinstance(params, Mapping) or not set(updates) <= set(params):
        keys = sorted(params) if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(
            f"fit: updates replace {sorted(updates)}, but the top level of params is "
            f"{keys}; updates may only name top-level entries of a dict of params"
        )
    for name, new in updates.items():
        old = jax.eval_shape(lambda tree: tree, params[name])
        if jax.tree.map(_signature, old) != jax.tree.map(_signature, new):
            raise ValueError(
                f"fit: the update of {name!r} has other shapes than params[{name!r}]"
            )
    return tuple(updates)


def _untied(leaf: Any) -> Any:
    """A restored array, free to be beside any other.

    Orbax ties arrays to a device. Whoever trains these on beside new, free ones (the
    optimiser's) would have the step compiled twice: its results are all tied.
    """
    single = isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) == 1
    return jnp.asarray(np.asarray(leaf)) if single else leaf


def _signature(leaf: Any) -> tuple[Any, Any]:
    return leaf.shape, leaf.dtype


def _divide(params: Any, names: tuple[str, ...]) -> tuple[Any, Any]:
    """Two trees shaped like `params`, None where the leaf is in the other one."""

    def trained(path: tuple[Any, ...], leaf: Any) -> bool:
        state = bool(names) and path[0].key in names
        return not state and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)

    chosen = jax.tree_util.tree_map_with_path(trained, params)
    free = jax.tree.map(lambda leaf, t: leaf if t else None, params, chosen)
    fixed = jax.tree.map(lambda leaf, t: None if t else leaf, params, chosen)
    return free, fixed


def _join(free: Any, fixed: Any) -> Any:
    return jax.tree.map(
        lambda a, b: b if a is None else a,
        free,
        fixed,
        is_leaf=lambda leaf: leaf is None,
    )


def _make_step(
    train_apply: TrainApply,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    names: tuple[str, ...],
) -> Callable[..., Any]:
    def objective(free: Any, fixed: Any, x: Array, y: dict[str, Array]) -> Any:
        outputs, updates = train_apply(_join(free, fixed), x)
        value, metrics = loss(outputs, y)
        return value, (dict(updates or {}), metrics)

    # Not donated: the caller keeps `params`, and `best` may be the very same arrays.
    @jax.jit
    def step(
        params: Any, opt_state: Any, rows: Int[Array, " b"], x: Array, y: Any
    ) -> Any:
        free, fixed = _divide(params, names)
        batch = x[rows], {task: labels[rows] for task, labels in y.items()}
        grad = jax.value_and_grad(objective, has_aux=True)
        (value, (updates, metrics)), slope = grad(free, fixed, *batch)
        change, opt_state = optimizer.update(slope, opt_state, free)
        params = _join(optax.apply_updates(free, change), fixed)
        if updates:
            params = type(params)({**params, **updates})
        return params, opt_state, {"loss": value, **metrics}

    return step


def _order(
    n: int, shape: tuple[int, int], seed: int, epoch: int
) -> Int[np.ndarray, "steps b"]:
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return order[: math.prod(shape)].reshape(shape).astype(np.int32)


def _epoch(
    step: Callable[..., Any],
    state: FitState,
    data: tuple[Array, dict[str, Array]],
    order: Int[np.ndarray, "steps b"],
    epoch: int,
    bar: Any,
) -> tuple[FitState, dict[str, float]]:
    params, opt_state = state.params, state.opt_state
    seen = []
    for rows in order:
        params, opt_state, metrics = step(params, opt_state, rows, *data)
        seen.append(metrics)
        bar.update()
    table = {name: np.array([float(m[name]) for m in seen]) for name in seen[0]}
    finite = np.isfinite(table["loss"])
    if not finite.all():
        first = int(np.argmin(finite))
        raise FloatingPointError(
            f"fit: the loss is {table['loss'][first]} at step {first + 1} of epoch "
            f"{epoch}; lower the learning rate, clip gradients "
            "(optax.clip_by_global_norm) or look for NaN in the data"
        )
    means = {name: float(values.mean()) for name, values in table.items()}
    return FitState(params, opt_state, state.best), means


def _first(evaluate: Evaluate | None, params: Any) -> FitInfo:
    """The starting point is a candidate: fine-tuning must not make a model worse."""
    began = time.perf_counter()
    record = {"epoch": 0, **_score(evaluate, params, 0)}
    seconds = time.perf_counter() - began
    return FitInfo([{**record, "seconds": seconds}], 0, seconds)


def _score(evaluate: Evaluate | None, params: Any, epoch: int) -> dict[str, Any]:
    if evaluate is None:
        return {}
    values = {name: float(v) for name, v in evaluate(params).items()}
    if not values or not all(map(math.isfinite, values.values())):
        raise ValueError(
            f"fit: evaluate returned {values} at epoch {epoch}; expected finite "
            "numbers by name, higher is better"
        )
    return {"validation": values, "mean": sum(values.values()) / len(values)}


def _judge(
    state: FitState, info: FitInfo, record: dict[str, Any]
) -> tuple[FitState, FitInfo]:
    best = next(r for r in info.history if r["epoch"] == info.best_epoch)
    seconds = info.seconds + record["seconds"]
    info = info._replace(history=[*info.history, record], seconds=seconds)
    if "mean" in record and record["mean"] <= best["mean"]:
        return state, info
    return state._replace(best=state.params), info._replace(best_epoch=record["epoch"])


def _facts(info: FitInfo) -> dict[str, Any]:
    facts = info._asdict()
    del facts["resumed_from"]
    return facts


def _summary(record: dict[str, Any]) -> dict[str, str]:
    shown = {"loss": record["loss"], **record.get("validation", {})}
    return {name: f"{value:.4g}" for name, value in shown.items()}
