"""What a task asks for: one class of several, numbers, or several labels at once.

An answer whose last axis is one, or with one value per example, is a number. One whose
labels have its own shape is told by these: several labels if all are 0 or 1, numbers if
they are other floats; but one class where every row is a distribution, as one-hot rows
are. All else are the logits of classes, of the example or of every position. What is
not so has to be said.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.core import Tracer

from cutjax.data.base import Split
from cutjax.errors import DataError, suggest
from cutjax.losses import spread_of

TEACHER = "teacher:"

CLASSES, NUMBERS, LABELS = KINDS = ("classes", "numbers", "labels")


def is_number(answers: Any) -> bool:
    """Whether answers are one number per example, or per position (last axis one)."""
    return answers.ndim == 1 or answers.shape[-1] == 1


def check_kinds(kinds: Mapping[str, str], tasks: Sequence[str]) -> None:
    """Check that kinds are of the tasks, and known.

    Raises:
        DataError: another task, or another kind.
    """
    for task, kind in kinds.items():
        if task not in tasks:
            raise DataError(f"kinds: no task {task!r}; {suggest(task, tasks)}")
        if kind not in KINDS:
            raise DataError(f"kinds: {task!r} is {kind!r}; {suggest(kind, KINDS)}")


def kinds_of(
    tasks: Sequence[str],
    outputs: Mapping[str, Any],
    labels: Mapping[str, Any],
    given: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The kind of every task.

    Args:
        tasks: the tasks.
        outputs: what is answered, or shapes of that.
        labels: true labels, of some tasks.
        given: kinds that were said.

    Returns:
        "classes", "numbers" or "labels", by task.

    Raises:
        DataError: one was said of another task, or is unknown.

    Example:
        >>> outputs = {"box": np.zeros((8, 4)), "kind": np.zeros((8, 3))}
        >>> kinds_of(("box", "kind"), outputs, {"box": np.full((8, 4), 0.3)})
        {'box': 'numbers', 'kind': 'classes'}
    """
    given = dict(given or {})
    check_kinds(given, tasks)
    return {t: given.get(t) or _told(outputs[t], labels.get(t)) for t in tasks}


def _told(answer: Any, labels: Any) -> str:
    """The kind that shapes and labels tell."""
    if is_number(answer):
        return NUMBERS
    if labels is None or np.shape(labels)[1:] != answer.shape[1:]:
        return CLASSES
    values = np.asarray(labels)
    missing = np.isnan(values) if values.dtype.kind == "f" else values < 0
    if (values >= 0).all() and np.allclose(values.sum(-1), 1):
        return CLASSES
    if np.isin(values[~missing], (0, 1)).all():
        return LABELS
    return NUMBERS if values.dtype.kind == "f" else CLASSES


def spreads_of(
    data: Split, tasks: Sequence[str], kinds: Mapping[str, str] | None = None
) -> dict[str, float]:
    """How far the parent's numbers spread over the data.

    Args:
        data: from `teach`.
        tasks: the tasks.
        kinds: of some; by their shape, if not given.

    Returns:
        Of those that ask for numbers, the standard deviation (1 for a constant), about
        the mean of each where there are several.
    """
    names = {t: f"{TEACHER}{t}" for t in tasks}
    taught = {t: np.asarray(data.y[n]) for t, n in names.items() if n in data.y}
    kinds = kinds or {}
    return {
        t: spread_of(v, each=not is_number(v))
        for t, v in taught.items()
        if kinds.get(t, NUMBERS if is_number(v) else CLASSES) == NUMBERS
    }


def check_labels(task: str, kind: str, answer: Any, labels: Any) -> None:
    """Check that true labels fit what is answered; their values, where these are known.

    Args:
        task: whose.
        kind: of it.
        answer: its output, or the shape of that; the number of rows may be another.
        labels: of the task.

    Raises:
        DataError: another type or shape, or a value out of range.
    """
    shape, form = np.shape(labels)[1:], tuple(answer.shape[1:])
    given = f"labels of {task!r} are {labels.dtype}{list(np.shape(labels))}"
    if kind == CLASSES:
        if not np.issubdtype(labels.dtype, np.integer):
            raise DataError(f"{given}, but classes are integers: {_instead(task)}")
        if shape != form[:-1]:
            raise DataError(
                f"{given}, but the task answers logits of {form[-1]} classes per "
                f"{'position' if form[1:] else 'example'}: expected [n{_of(form[:-1])}]"
                f"{', labels[..., 0]' if shape == (*form[:-1], 1) else ''}; or "
                f"{_instead(task)}"
            )
    elif shape not in (form, form[:-1] if form[-1:] == (1,) else form, (*form, 1)):
        raise DataError(f"{given}, but the task answers {kind} [n{_of(form)}]")
    if not isinstance(labels, Tracer):
        _check_values(task, kind, form, np.asarray(labels))


def _of(shape: Sequence[int]) -> str:
    return "".join(f", {size}" for size in shape)


def _instead(task: str) -> str:
    return (
        "labels.argmax(-1) of one-hot ones, labels.astype(int) of whole floats, or "
        f"kinds={{{task!r}: 'numbers'}} (or 'labels', of several at once)"
    )


def _check_values(task: str, kind: str, form: Sequence[int], labels: Any) -> None:
    if not labels.size or kind == NUMBERS:
        return
    top = form[-1] - 1 if kind == CLASSES else 1
    if (highest := labels[labels == labels].max(initial=-1)) > top:
        what = f"{top + 1} classes" if kind == CLASSES else "several labels at once"
        raise DataError(
            f"labels of {task!r} go up to {highest:g}, but {what} need 0 to {top}; "
            f"where there is no label put -1: np.where(labels > {top}, -1, labels)"
        )
