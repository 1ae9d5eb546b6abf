"""A merged network whose tasks have running statistics of their own."""

from collections.abc import Mapping
from typing import Any

from cutjax.errors import KeepError, listed, suggest
from cutjax.given import check_by_name
from cutjax.merge.merged import Merged

TASKS = "tasks"


def own_statistics(merged: Merged, states: Mapping[str, Mapping[str, Any]]) -> Merged:
    """The merged network with BatchNorm per task: kernels are shared, statistics not.

    What follows the first BatchNorm then differs between tasks and runs once for each:
    of several tasks memory is shared, not work. A task alone costs what it did.

    Args:
        merged: the network.
        states: by task, the collections that replace those of `merged.params`, such as
            `{"batch_stats": new["batch_stats"]}` where `train` is from `train_apply`
            and `new = recalibrate(train, merged.params, batches_of_the_task)`.

    Returns:
        The function and its parameters, with the states under `tasks`.

    Raises:
        KeepError: a collection that the network does not have; and at the first call
            a task that it does not have, or one of its tasks without a state (`{}`
            leaves a task the statistics of `merged`).
        MismatchError: states that are not by task.

    Example:
        >>> import jax.numpy as jnp
        >>> def apply(p, x):
        ...     h = p["w"] * (x - p["mean"])
        ...     return {"a": h, "b": h + 1}
        >>> both = Merged(apply, {"w": jnp.float32(2), "mean": jnp.float32(1)})
        >>> apart = own_statistics(both, {"a": {"mean": 0.0}, "b": {"mean": 3.0}})
        >>> {k: float(v) for k, v in apart.apply(apart.params, 3.0).items()}
        {'a': 6.0, 'b': 1.0}
    """
    check_by_name(states, "states", "{task: {collection: values}, ...}")
    for task, state in states.items():
        for name in state:
            if name not in merged.params:
                raise KeepError(
                    f"states[{task!r}] hold {name!r}; {suggest(name, merged.params)}"
                )

    def apply(params: Any, *inputs: Any) -> dict[str, Any]:
        common = {name: tree for name, tree in params.items() if name != TASKS}
        found = {}
        for task, state in params[TASKS].items():
            outputs = merged.apply({**common, **state}, *inputs)
            if task not in outputs:
                raise KeepError(f"no task {task!r}; {suggest(task, outputs)}")
            if missing := [name for name in outputs if name not in params[TASKS]]:
                raise KeepError(
                    f"no statistics of {listed(missing)}; give every task its own, or "
                    "{} to leave it those of the merged network"
                )
            found[task] = outputs[task]
        return found

    held = {task: dict(state) for task, state in states.items()}
    # What every task replaces is read by none.
    gone = set.intersection(*(set(state) for state in held.values())) if held else set()
    rest = {name: tree for name, tree in merged.params.items() if name not in gone}
    return Merged(apply, {**rest, TASKS: held})
