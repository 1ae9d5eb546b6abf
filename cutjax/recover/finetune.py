"""A short training of the compact model, distilling what the parent answered."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import jax
import numpy as np
import optax

from cutjax.data.base import Split, as_split
from cutjax.data.examples import count, rows
from cutjax.errors import MismatchError, suggest
from cutjax.fit import FitInfo, fit
from cutjax.given import several
from cutjax.held import top_level
from cutjax.metrics import named
from cutjax.mirror import named_leaves, path_name
from cutjax.recover.balance import Balance, named_balance
from cutjax.recover.balanced import BALANCE, balanced
from cutjax.recover.beside import beside
from cutjax.recover.distill import (
    PARENT,
    answered,
    beside_parent,
    distillation as distillation,
    feature_loss,
    task_losses,
    teach as teach,
)
from cutjax.recover.kinds import TEACHER, check_labels, kinds_of, spreads_of
from cutjax.recover.statistics import statistics
from cutjax.training.options import batch
from cutjax.training.parts import made_of, without

SOME = 512  # examples that tell how far the parent's numbers spread


def frozen(
    apply: Callable[..., Any], state: Sequence[str] | str | None = None
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """A function in training that leaves its statistics as they are.

    A compensated network expects the statistics that it was fitted with. In batches of
    its own it has others, because a fit is less spread out than what it was fitted to:
    normalised by these it is another function at first. `settle` mends that, for a
    training with statistics that move; without it these are worse below some hundred
    steps. Where answers are numbers, the last part of a long training is better frozen
    again: to them the statistics of a batch are noise.

    Args:
        apply: the compact function in inference, `(params, x) -> outputs`.
        state: what is not trained, top-level entries of `params`, or parts of paths;
            if not given, `batch_stats`, and a `mean` and `var` side by side (NNX).

    Returns:
        `(params, x) -> (outputs, updates)`, for `finetune` after `compensate`; of an
        entry that is statistics in part, updates hold None for the rest.

    Raises:
        MismatchError: when called, if `params` have nothing of such a name.

    Example:
        >>> train = frozen(lambda p, x: p["w"] * x, state=("seen",))
        >>> train({"w": 2.0, "seen": 1.0}, 3.0)
        (6.0, {'seen': 1.0})
    """

    def train_apply(params: Any, *inputs: Any) -> tuple[Any, dict[str, Any]]:
        return apply(params, *inputs), _statistics_of(params, state)

    return train_apply


def _statistics_of(params: Any, state: Sequence[str] | str | None) -> dict[str, Any]:
    """The entries that hold statistics, with None for what else they hold."""
    paths = named_leaves(params)
    for name in () if state is None else several(state):
        parts = {piece for path in paths for piece in path.split("/")}
        parts |= {*top_level(params)} if isinstance(params, Mapping) else set()
        if name not in parts:
            raise MismatchError(f"no state {name!r}; {suggest(name, parts)}")
    if not isinstance(params, Mapping):
        return {}
    chosen = statistics(paths, state)
    some = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if chosen(path_name(path)) else None, params
    )
    return {k: entry for k, entry in top_level(some).items() if jax.tree.leaves(entry)}


def finetune(
    train_apply: Callable[..., tuple[Any, Any]],
    params: Any,
    data: Split | tuple[Any, Mapping[str, Any]],
    *,
    tasks: Sequence[str] | str,
    epochs: int = 2,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    temperature: float = 2.0,
    labels: float = 0.0,
    kinds: Mapping[str, str] | None = None,
    features: float = 0.0,
    balance: str | Balance = "uniform",
    parent: tuple[Callable[..., Any], Any] | None = None,
    optimizer: optax.GradientTransformation | None = None,
    seed: int = 0,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    checkpoint: str | PathLike[str] | None = None,
    progress: bool = True,
    **options: Any,
) -> tuple[Any, FitInfo]:
    """Train the compact model to answer as the parent did.

    Args:
        train_apply: the compact function in training, `(params, x) -> (outputs,
            updates)`: `shrink(parent_train_apply, graph, keep, tasks)`, or for a very
            short training after `compensate` `frozen(small_apply)`. With `features`,
            `features(parent_train_apply, graph, keep).child`, or frozen likewise.
        params: the compact parameters.
        data: training data from `teach`; nothing of it needs labels if `labels` is 0.
        tasks: the tasks to train.
        epochs: passes over the data.
        batch_size: examples per step.
        learning_rate: the peak of a one-cycle schedule of AdamW.
        temperature: see `distillation`.
        labels: see `distillation`: weight of the loss of true labels. One that is
            negative, or for numbers NaN, is none and costs nothing.
        kinds: what tasks ask for, `{"boxes": "numbers", "tags": "labels"}`: "classes"
            (one of several: softmax), "numbers" (squared error, in units of the
            standard deviation) or "labels" (several at once: a sigmoid each). Of tasks
            not named, an answer whose last axis is one, or with one value per example,
            is a number; where the data hold labels of the answer's own shape, those of
            0 and 1 are labels and other floats numbers, unless every row is a
            distribution, such as a one-hot one; all else are classes.
        features: weight of the mean mismatch of the features.
        balance: how the tasks are weighed: "uniform", "uncertainty", "gradnorm",
            "famo", or one of `cutjax.recover.balance`.
        parent: `(apply, params)` of the parent, asked within each step; `data` then
            need not be from `teach`. With `features`, that of `features(...).parent`.
        optimizer: in place of AdamW; `learning_rate` is then not looked at. It, and an
            `opt_state` of `optimizer.init(params)`, know of `params` alone.
        seed: order of the examples.
        evaluate: on validation data; the best epoch is returned.
        checkpoint: directory to keep the run in, and to resume it from, with the same
            arguments; `epochs` may be others only beside an `optimizer`.
        progress: show a progress bar.
        **options: of `cutjax.fit.fit`. With `augment`, what `teach` noted stays the
            answer; a `parent` answers what was made.

    Returns:
        `(params, info)`, see `cutjax.fit.fit`.

    Raises:
        ValueError: a balance with a state, or a parent, beside parameters that are not
            a dict; a balance with a state in another type (`dtype`).
        DataError: no labels, where these are asked for, or some that do not fit; a
            temperature or a weight out of range; an unknown kind; `data` that is no
            split.
        KeepError: a task is unknown, or none is chosen.
        MismatchError: `train_apply` does not return outputs and updates, or answers a
            task by several arrays.
    """
    data = as_split(data, "finetune")
    x = batch(batch_size, data, options.get("augment"))
    outputs = named(made_of(train_apply, params, x)[0])
    tasks = answered(tasks, outputs)
    kinds = kinds_of(tasks, outputs, data.y, kinds)
    update = batch_size * options.get("accumulate", 1)
    examples = count(data.x, "finetune")
    steps = max(epochs * (examples // max(update, 1)), 1)
    numbers = {"temperature": temperature, "labels": labels, "features": features}
    if optimizer is None:
        rate = optax.cosine_onecycle_schedule(steps, learning_rate)
        optimizer = optax.adamw(rate, weight_decay=1e-4)
        numbers |= {"learning_rate": learning_rate, "epochs": epochs}
    wanted = _wanted(data, tasks, bool(features), bool(labels))
    for task in {*wanted} & {*tasks}:
        check_labels(task, kinds[task], outputs[task], wanted[task])
    spreads = _spreads(data._replace(y=wanted), tasks, kinds, parent)
    answers: dict[str, Any] = {"temperature": temperature, "labels": labels}
    answers |= {"spreads": spreads, "kinds": kinds}
    loss = distillation(tasks, **answers, features=features)
    chosen = named_balance(balance, tuple(spreads))
    added = ()
    if parent is not None:
        _check_dict(params, options, "parent=")
        train_apply, params = beside_parent(train_apply, params, *parent)
        added = (PARENT,)
        optimizer = beside(optimizer, added)
    if jax.tree.leaves(chosen.init(tasks)):
        _check_dict(params, options, "balance=", dtype=True)
        each = task_losses(tasks, **answers)
        extra = (lambda o, y: features * feature_loss(o, y)) if features else None
        train_apply, params, loss, optimizer = balanced(
            chosen, train_apply, params, each, optimizer, x, tasks=tasks, extra=extra
        )
        added = (*added, BALANCE)
    settings = _settings(tasks, balance, numbers, _told(kinds, outputs))
    settings |= options.pop("settings", None) or {}
    trained, info = fit(
        train_apply,
        params,
        loss,
        data._replace(y=wanted or {"row": np.arange(examples)}),
        optimizer=optimizer,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        evaluate=evaluate and (lambda p: evaluate(_shown(p, added))),
        checkpoint=checkpoint,
        settings=settings,
        progress=progress,
        label="finetune",
        **options,
    )
    return _shown(trained, added), info


def _settings(
    tasks: Sequence[str],
    balance: str | Balance,
    numbers: Mapping[str, float],
    told: Mapping[str, str],
) -> dict[str, Any]:
    """What a checkpoint must agree on beside what `fit` itself knows."""
    name = balance if isinstance(balance, str) else "given"
    plain = {key: float(value) for key, value in numbers.items()}
    kinds = {"kinds": dict(told)} if told else {}
    return {"tasks": [*tasks], "balance": name, **plain, **kinds}


def _told(kinds: Mapping[str, str], outputs: Mapping[str, Any]) -> dict[str, str]:
    """The kinds that shapes alone would not tell."""
    plain = kinds_of(tuple(kinds), outputs, {})
    return {task: kind for task, kind in kinds.items() if kind != plain[task]}


def _wanted(
    data: Split, tasks: Sequence[str], features: bool, labels: bool
) -> dict[str, Any]:
    """The targets that the losses look at; those of features only where asked for."""
    names = [*tasks] if labels else []
    names += [f"{TEACHER}{t}" for t in tasks]
    if features:
        names += [k for k in data.y if k.startswith(f"{TEACHER}feature:")]
    return {k: data.y[k] for k in names if k in data.y}


def _spreads(
    data: Split,
    tasks: Sequence[str],
    kinds: Mapping[str, str],
    parent: tuple[Callable[..., Any], Any] | None,
) -> dict[str, float]:
    """How far the parent's numbers spread, as noted or, over some examples, as asked.

    These lie evenly: the first ones of sorted data would be all alike.
    """
    if parent is not None and not any(k.startswith(TEACHER) for k in data.y):
        n = count(data.x, "finetune")
        some = np.linspace(0, n - 1, min(n, SOME)).astype(int)
        data = teach(*parent, Split(rows(data.x, some), {}), tasks=tasks)
    return spreads_of(data, tasks, kinds)


def _shown(params: Any, added: Sequence[str]) -> Any:
    return without(params, added) if added else params


def _check_dict(
    params: Any, options: Mapping[str, Any], what: str, *, dtype: bool = False
) -> None:
    if not isinstance(params, Mapping):
        raise ValueError(
            f"finetune: {what} needs params to be a dict, not "
            f"{type(params).__name__}; wrap them: {{'params': params}}"
        )
    if dtype and options.get("dtype") is not None:
        raise ValueError(
            f"finetune: {what} keeps a state that {options['dtype']} would round; use "
            "dtype=None, or balance='uniform'"
        )
