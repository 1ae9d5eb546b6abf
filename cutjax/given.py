"""What callers give: names, one or several, and functions with their inputs."""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.core import Tracer

from cutjax.errors import CutjaxError, KeepError, MismatchError, suggest

VALUE_NEEDED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


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


def said(value: Any) -> str:
    """What was given, in a few words.

    Example:
        >>> import numpy as np
        >>> said(np.ones((2, 3))), said([1, 2]), said({"x": np.ones(3)}), said(None)
        ('float64[2, 3]', 'a list of 2', "{'x': float64[3]}", 'None')
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {said(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    short = value is None or isinstance(value, bool | int | float | complex | str)
    return repr(value) if short else f"a {type(value).__name__}"


def check_by_name(given: Any, what: str, wanted: str, kind: Any = object) -> None:
    """Check that something is given by name.

    Args:
        given: what was.
        what: the argument that it was given for.
        wanted: what would work.
        kind: of what each name stands for.

    Raises:
        MismatchError: no mapping, or an empty one, or a name that is no string, or
            another kind.
    """
    if not isinstance(given, Mapping):
        raise MismatchError(f"{what} is {said(given)}; pass {wanted}")
    if not given:
        raise MismatchError(f"no {what}; pass {wanted}")
    for name, value in given.items():
        if not isinstance(name, str):
            raise MismatchError(
                f"{what} has the name {name!r}; names are strings: pass {wanted}"
            )
        if not isinstance(value, kind):
            raise MismatchError(f"{what}[{name!r}] is {said(value)}; pass {wanted}")


@contextlib.contextmanager
def calling(inputs: Sequence[Any], traced: Sequence[str] = ()) -> Iterator[None]:
    """While a user's function is called to be traced.

    Args:
        inputs: one batch.
        traced: `Graph.inputs`, where there is a graph: what the function takes.

    Raises:
        MismatchError: it cannot be called like that.
    """
    try:
        yield
    except CutjaxError:
        raise
    except VALUE_NEEDED as error:
        error.add_note(
            "cutjax traces the function as jax.jit does, so its structure must not "
            "depend on the values of parameters or inputs: use jnp.where or "
            "jax.lax.cond, or close over what decides instead of passing it."
        )
        raise
    except Exception as error:
        given = ", ".join(["params", *map(said, inputs)])
        before = "" if not traced else f"; it was traced with ({', '.join(traced)})"
        raise MismatchError(
            f"the function cannot be called as apply({given}): "
            f"{type(error).__name__}: {error}{before}"
        ) from error


@contextlib.contextmanager
def as_traced(*given: tuple[Mapping[str, Any], Mapping[str, Any]]) -> Iterator[None]:
    """While a function is evaluated equation by equation, as it was traced.

    Many equations take parameters of another dtype; so it is looked at where one fails.

    Args:
        *given: parameters by path, and what they were traced as (`Graph.shapes`).

    Raises:
        MismatchError: an equation fails, and parameters are of another dtype.
    """
    try:
        yield
    except TypeError as error:
        wrong = [
            f"{path!r} is {leaf.dtype}, traced as {shapes[path].dtype}"
            for leaves, shapes in given
            for path, leaf in leaves.items()
            if path in shapes and leaf.dtype != shapes[path].dtype
        ]
        if not wrong:
            raise
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise MismatchError(
            f"parameters are not of the dtypes of the graph: {'; '.join(wrong[:4])}"
            f"{more}; trace again with these parameters, or cast them ({error})"
        ) from error
