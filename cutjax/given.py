"""Names as callers give them: one, or several."""

from collections.abc import Collection, Iterable

from cutjax.errors import KeepError, suggest


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
