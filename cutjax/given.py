"""Names as callers give them: one, or several."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
from jax.core import Tracer

from cutjax.errors import CutjaxError, KeepError, suggest


def several(names: Iterable[str] | str) -> tuple[str, ...]:
    """One name or several as a tuple: the letters of a string are no names.

    Example:
        >>> several("age"), several(["age", "sex"])
        (('age',), ('age', 'sex'))
    """
    return (names,) if isinstance(names, str) else tuple(names)


def chosen_tasks(tasks: Iterable[str] | str, known: Collection[str]) -> tuple[str, ...]:
    """The chosen tasks as a tuple.

    Args:
        tasks: one, or several.
        known: what the function answers.

    Raises:
        KeepError: a task is unknown, or none is chosen.
    """
    chosen = several(tasks)
    for task in chosen:
        if task not in known:
            raise KeepError(f"no task {task!r}; {suggest(task, known)}")
    if not chosen:
        raise KeepError(f"no task chosen; the function answers {list(known)}")
    return chosen


def check_scores(scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that scores are per task and group.

    Raises:
        KeepError: they are of several criteria, as `saliency` returns them.
    """
    for name, tasks in scores.items():
        inner = tasks.values() if isinstance(tasks, Mapping) else ()
        if any(isinstance(groups, Mapping) for groups in inner):
            raise KeepError(
                f"these are scores of the criteria {list(scores)}; choose one "
                f"criterion: scores[{name!r}]"
            )


def check_known(what: str, *values: Any) -> None:
    """Check that values are known now.

    Raises:
        CutjaxError: `what` is called under `jax.jit` or another transformation.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values)):
        raise CutjaxError(
            f"{what} decides on shapes by values, on the host: call it outside of "
            "jax.jit, jax.grad and jax.vmap"
        )
