"""A short training of the compact model, distilling what the parent answered.

An answer of one value per example is a number, and is learnt by squared error.
"""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from cutjax.data.base import Split
from cutjax.fit import FitInfo, fit
from cutjax.losses import of_classes, of_numbers

TEACHER = "teacher:"


def teach(
    apply: Callable[..., Any],
    params: Any,
    split: Split,
    *,
    tasks: Sequence[str],
    batch_size: int = 250,
) -> Split:
    """A split whose targets also hold the parent's logits, computed once.

    Args:
        apply: the parent's function.
        params: its parameters.
        split: the data; its labels are kept.
        tasks: whose logits to note, as targets `teacher:<task>`.
        batch_size: examples per call.

    Returns:
        The split with more targets.
    """
    answer = jax.jit(lambda p, x: {t: apply(p, x)[t] for t in tasks})
    found: list[dict[str, np.ndarray]] = []
    for start in range(0, len(split.x), batch_size):
        x = split.x[start : start + batch_size]
        short = batch_size - len(x)
        padded = np.concatenate([x, np.repeat(x[:1], short, 0)]) if short else x
        logits = answer(params, padded)
        found.append({t: np.asarray(v)[: len(x)] for t, v in logits.items()})
    logits = {f"{TEACHER}{t}": np.concatenate([f[t] for f in found]) for t in tasks}
    return split._replace(y={**split.y, **logits})


def distillation(
    tasks: Sequence[str],
    *,
    temperature: float = 2.0,
    labels: float = 0.0,
    spreads: Mapping[str, float] | None = None,
) -> Callable[[Any, Mapping[str, Array]], tuple[Float[Array, ""], dict[str, Array]]]:
    """Divergence from the parent's softened answers, and optionally from labels.

    Where the parent answers with a number, it is the squared error to that number.

    Args:
        tasks: the tasks to train, weighted alike.
        temperature: of both softmaxes; the loss is scaled by its square.
        labels: weight of the loss of true labels; 0 needs none.
        spreads: of tasks that ask for a number, what counts as an error of one; 1 if
            not given.

    Returns:
        `loss(outputs, y)` for `fit`, on data from `teach`.

    Reference:
        Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network, 2015.
    """

    def loss(outputs: Any, y: Mapping[str, Array]) -> tuple[Any, dict[str, Array]]:
        each = {}
        for task in tasks:
            answer, taught = outputs[task], y[f"{TEACHER}{task}"]
            if _is_number(taught):
                hard = of_numbers((spreads or {}).get(task, 1.0))
                each[task] = hard(answer, taught)
            else:
                hard = of_classes
                each[task] = _divergence(answer, taught, temperature)
            if labels:
                each[task] += labels * hard(answer, y[task])
        return jnp.sum(jnp.stack(list(each.values()))), each

    return loss


def _is_number(answers: Any) -> bool:
    return answers.ndim == 1 or answers.shape[-1] == 1


def _divergence(logits: Array, taught: Array, temperature: float) -> Float[Array, ""]:
    soft = jax.nn.softmax(taught / temperature)
    student = jax.nn.log_softmax(logits / temperature)
    teacher = jnp.log(jnp.maximum(soft, 1e-9))
    return temperature**2 * jnp.sum(soft * (teacher - student), -1).mean()


def _spreads(data: Split, tasks: Sequence[str]) -> dict[str, float]:
    """How far the parent's numbers spread over the data."""
    taught = {task: data.y[f"{TEACHER}{task}"] for task in tasks}
    found = {t: float(np.std(v)) for t, v in taught.items() if _is_number(v)}
    return {task: spread or 1.0 for task, spread in found.items()}


def frozen(
    apply: Callable[..., Any], state: Sequence[str] = ("batch_stats",)
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """A function in training that leaves its statistics as they are.

    A compensated network expects the statistics that it was fitted with. In batches of
    its own it has others, because a fit is less spread out than what it was fitted to:
    normalised by these it is another function, which a short training does not mend.

    Args:
        apply: the compact function in inference, `(params, x) -> outputs`.
        state: top-level entries of `params` that are not trained.

    Returns:
        `(params, x) -> (outputs, updates)`, for `finetune` after `compensate`.

    Example:
        >>> train = frozen(lambda p, x: p["w"] * x, state=("seen",))
        >>> train({"w": 2.0, "seen": 1.0}, 3.0)
        (6.0, {'seen': 1.0})
    """

    def train_apply(params: Any, x: Any) -> tuple[Any, dict[str, Any]]:
        return apply(params, x), {name: params[name] for name in state}

    return train_apply


def finetune(
    train_apply: Callable[..., tuple[Any, Any]],
    params: Any,
    data: Split,
    *,
    tasks: Sequence[str],
    epochs: int = 2,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    temperature: float = 2.0,
    labels: float = 0.0,
    seed: int = 0,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    checkpoint: str | PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[Any, FitInfo]:
    """Train the compact model to answer as the parent did.

    Args:
        train_apply: the compact function in training, `(params, x) -> (outputs,
            updates)`: `shrink(parent_train_apply, graph, keep, tasks)`, or after
            `compensate` better `frozen(small_apply)`.
        params: the compact parameters.
        data: training data from `teach`; nothing of it needs labels if `labels` is 0.
        tasks: the tasks to train.
        epochs: passes over the data.
        batch_size: examples per step.
        learning_rate: the peak of a one-cycle schedule of AdamW.
        temperature: see `distillation`.
        labels: see `distillation`.
        seed: order of the examples.
        evaluate: on validation data; the best epoch is returned.
        checkpoint: directory to keep the run in, and to resume it from.
        progress: show a progress bar.

    Returns:
        `(params, info)`, see `cutjax.fit.fit`.
    """
    steps = max(epochs * (len(data.x) // batch_size), 1)
    schedule = optax.cosine_onecycle_schedule(steps, learning_rate)
    wanted = {k: v for k, v in data.y.items() if k.removeprefix(TEACHER) in tasks}
    return fit(
        train_apply,
        params,
        distillation(
            tasks,
            temperature=temperature,
            labels=labels,
            spreads=_spreads(data, tasks),
        ),
        data._replace(y=wanted),
        optimizer=optax.adamw(schedule, weight_decay=1e-4),
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        evaluate=evaluate,
        checkpoint=checkpoint,
        progress=progress,
        label="finetune",
    )
