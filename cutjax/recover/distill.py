"""Learning what the parent answers: its logits, its numbers, and its features.

Numbers are learnt by squared error, classes by the divergence of their softmax, several
labels by that of the sigmoid of each; `kinds` says which is which. What the parent says
is read from the targets (`teach`: computed once) or from the outputs (`beside_parent`:
computed within the step).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cutjax._jit import jit
from cutjax.data.base import Split, as_split
from cutjax.data.examples import count, inputs_in, padded, rows
from cutjax.errors import DataError, MismatchError
from cutjax.given import chosen_tasks, several
from cutjax.metrics import named
from cutjax.recover.answers import divergence as divergence, losses_of
from cutjax.recover.features import FEATURE, mismatch
from cutjax.recover.kinds import (
    CLASSES,
    NUMBERS,
    TEACHER,
    check_kinds,
    check_labels,
    is_number,
)
from cutjax.training.parts import held_as, updated, without

PARENT = "parent"

Each = Callable[[Any, Mapping[str, Any]], dict[str, Array]]


def teach(
    apply: Callable[..., Any],
    params: Any,
    split: Split | tuple[Any, Mapping[str, Any]],
    *,
    tasks: Sequence[str] | str,
    batch_size: int = 250,
) -> Split:
    """A split whose targets also hold the parent's answers, computed once.

    Args:
        apply: the parent's function; that of `features(...).parent` has its features
            noted too, which takes memory for every example.
        params: its parameters.
        split: the data; its labels are kept.
        tasks: whose logits to note, as targets `teacher:<task>`.
        batch_size: examples per call.

    Returns:
        The split with more targets.

    Raises:
        DataError: no split, no examples, or batches of none.
        KeepError: a task is unknown, or none is chosen.
        MismatchError: a task is answered by several arrays.
    """
    split = as_split(split, "teach")
    examples = count(split.x, "teach")
    if not examples or batch_size < 1:
        raise DataError(
            f"teach: {examples} examples in batches of {batch_size}; expected 1 or "
            "more of each"
        )

    def wanted(p: Any, x: Any) -> dict[str, Any]:
        outputs = named(apply(p, *inputs_in(x)))
        chosen = answered(tasks, outputs)
        return {k: outputs[k] for k in (*chosen, *_features_in(outputs))}

    answer = jit(wanted)
    found: list[dict[str, np.ndarray]] = []
    for start in range(0, examples, batch_size):
        x = rows(split.x, slice(start, start + batch_size))
        said = answer(params, padded(x, batch_size))
        left = min(batch_size, examples - start)
        found.append({k: np.asarray(v)[:left] for k, v in said.items()})
    said = {f"{TEACHER}{k}": np.concatenate([f[k] for f in found]) for k in found[0]}
    return split._replace(y={**split.y, **said})


def answered(tasks: Sequence[str] | str, outputs: Mapping[str, Any]) -> tuple[str, ...]:
    """The tasks as a tuple, checked against what a function answers.

    Args:
        tasks: one, or several.
        outputs: arrays by task, or their shapes.

    Raises:
        KeepError: a task is unknown, or none is chosen.
        MismatchError: a task is answered by several arrays.
    """
    chosen = chosen_tasks(tasks, outputs)
    for task in chosen:
        if not hasattr(outputs[task], "ndim"):
            raise MismatchError(
                f"task {task!r} is answered by a {type(outputs[task]).__name__} of "
                "arrays, but what is distilled is one array per task: let the function "
                "return a dict, {'first': ..., 'second': ...}"
            )
    return chosen


def beside_parent(
    train_apply: Callable[..., tuple[Any, Any]],
    params: Any,
    apply: Callable[..., Any],
    parent: Any,
) -> tuple[Callable[..., tuple[Any, dict[str, Any]]], Any]:
    """A function in training whose outputs also hold the parent's, as `teacher:...`.

    The parent's parameters travel as state that does not change: a compiled step holds
    them as an argument, not as constants.

    Args:
        train_apply: the child's, `(params, x) -> (outputs, updates)`.
        params: the child's, a dict or another mapping.
        apply: the parent's function in inference, `(parent, x) -> outputs`.
        parent: its parameters.

    Returns:
        The function, and its parameters: the child's with an entry `parent` more.
    """

    form = jax.tree.map(lambda leaf: 0, parent)

    def both(p: Any, *inputs: Any) -> tuple[Any, dict[str, Any]]:
        outputs, updates = train_apply(without(p, (PARENT,)), *inputs)
        # A FrozenDict makes FrozenDicts of what is put into it.
        said = jax.lax.stop_gradient(named(apply(held_as(form, p[PARENT]), *inputs)))
        said = {f"{TEACHER}{k}": v for k, v in said.items()}
        return {**named(outputs), **said}, {**(updates or {}), PARENT: p[PARENT]}

    return both, updated(params, {PARENT: parent})


def task_losses(
    tasks: Sequence[str] | str,
    *,
    temperature: float = 2.0,
    labels: float = 0.0,
    spreads: Mapping[str, float] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> Each:
    """Per task, how far the outputs are from the parent's, see `distillation`.

    Args:
        tasks: the tasks.
        temperature: of both softmaxes; the loss is scaled by its square.
        labels: weight of the loss of true labels.
        spreads: of tasks that ask for numbers, what counts as an error of one; one
            that is given makes the task one of numbers, whatever its shape.
        kinds: "classes", "numbers" or "labels" of some tasks.

    Returns:
        `each(outputs, y) -> {task: scalar}`.

    Raises:
        DataError: a temperature or a weight out of range; kinds of other tasks.
    """
    tasks, spreads = several(tasks), dict(spreads or {})
    kinds = {**dict.fromkeys({*spreads} & {*tasks}, NUMBERS), **(kinds or {})}
    check_kinds(kinds, tasks)
    _check_range(temperature, labels)

    def each(outputs: Any, y: Mapping[str, Any]) -> dict[str, Array]:
        outputs, found = named(outputs), {}
        for task in tasks:
            answer, taught = outputs[task], _taught(task, outputs, y)
            kind = kinds.get(task) or (NUMBERS if is_number(taught) else CLASSES)
            spread = spreads.get(task, 1.0)
            soft, hard = losses_of(kind, temperature=temperature, spread=spread)
            found[task] = soft(answer, taught)
            if labels:
                found[task] += labels * hard(answer, _label(task, kind, answer, y))
        return found

    return each


def _check_range(temperature: float, labels: float) -> None:
    if not 0 < temperature < math.inf:
        raise DataError(
            f"temperature is {temperature}; expected a number above 0, such as 2.0"
        )
    if not 0 <= labels < math.inf:
        raise DataError(
            f"labels, the weight of their loss, is {labels}; expected 0 or more (0 "
            "needs no labels)"
        )


def feature_losses(outputs: Any, y: Mapping[str, Any]) -> dict[str, Array]:
    """Per feature in the outputs, its `mismatch` with the parent's.

    Args:
        outputs: of `features(...).child`.
        y: targets of `teach` with `features(...).parent`, unless the outputs hold them.

    Returns:
        `{feature:<path>: scalar}`.
    """
    outputs = named(outputs)
    return {
        k: mismatch(outputs[k], _taught(k, outputs, y)) for k in _features_in(outputs)
    }


def distillation(
    tasks: Sequence[str] | str,
    *,
    temperature: float = 2.0,
    labels: float = 0.0,
    spreads: Mapping[str, float] | None = None,
    kinds: Mapping[str, str] | None = None,
    features: float = 0.0,
) -> Callable[[Any, Mapping[str, Any]], tuple[Float[Array, ""], dict[str, Array]]]:
    """Divergence from the parent's softened answers, and optionally from labels.

    Where the parent answers with numbers, it is the squared error to these.

    Args:
        tasks: the tasks to train, weighted alike.
        temperature: of both softmaxes; the loss is scaled by its square.
        labels: weight of the loss of true labels; 0 needs none.
        spreads: of tasks that ask for numbers, what counts as an error of one; 1 if
            not given. One that is given makes the task one of numbers.
        kinds: of some tasks, "classes" (softmax), "numbers" (squared error) or "labels"
            (a sigmoid each). If not given, an answer whose last axis is one, or with
            one value per example, is a number, and all else are classes.
        features: weight of the mean `mismatch` of the features.

    Returns:
        `loss(outputs, y)` for `fit`, on data from `teach`. A label that is negative, or
        for numbers NaN, is none and costs nothing.

    Raises:
        DataError: a temperature or a weight out of range; kinds of other tasks; when
            called, no answers of the parent, or labels that do not fit.

    Reference:
        Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network, 2015.
    """
    each = task_losses(
        tasks, temperature=temperature, labels=labels, spreads=spreads, kinds=kinds
    )

    def loss(outputs: Any, y: Mapping[str, Any]) -> tuple[Any, dict[str, Array]]:
        found = each(outputs, y)
        total = jnp.stack([*found.values()]).sum()
        if features:
            extra = feature_loss(outputs, y)
            return total + features * extra, {**found, "features": extra}
        return total, found

    return loss


def feature_loss(outputs: Any, y: Mapping[str, Any]) -> Float[Array, ""]:
    """The mean mismatch over features.

    Args:
        outputs: see `feature_losses`.
        y: see there.

    Returns:
        A share.

    Raises:
        DataError: the outputs hold no feature.
    """
    found = feature_losses(outputs, y)
    if not found:
        raise DataError(
            "the outputs hold no features; train features(apply, graph, keep).child, "
            "say finetune(frozen(seen.child), ..., features=1.0)"
        )
    return jnp.stack([*found.values()]).mean()


def _taught(key: str, outputs: Mapping[str, Any], y: Mapping[str, Any]) -> Any:
    name = f"{TEACHER}{key}"
    if name not in outputs and name not in y:
        raise DataError(
            f"the parent's {key!r} is not known; make the data with teach(apply, "
            "params, split, tasks=...) (for features, of features(...).parent), or "
            "pass finetune(parent=(apply, params))"
        )
    return outputs[name] if name in outputs else y[name]


def _label(task: str, kind: str, answer: Any, y: Mapping[str, Any]) -> Any:
    if task not in y:
        raise DataError(
            f"there are no labels of {task!r}; pass Split(x, {{{task!r}: ...}}), or "
            "labels=0.0 to learn from the parent alone"
        )
    check_labels(task, kind, answer, y[task])
    return y[task]


def _features_in(outputs: Mapping[str, Any]) -> list[str]:
    return [k for k in outputs if k.startswith(FEATURE)]
