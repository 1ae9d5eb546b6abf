"""A merged network whose tasks look at different inputs."""

from collections.abc import Callable, Mapping
from typing import Any

from cutjax.errors import KeepError, suggest
from cutjax.given import check_by_name
from cutjax.inputs import inputs_of
from cutjax.metrics import named


def each_its_input(
    apply: Callable[..., Mapping[str, Any]],
) -> Callable[[Any, Mapping[str, Any]], dict[str, Any]]:
    """The merged function with an input per task: parameters are shared, work is not.

    What is shared is stored once and runs once per input; what a task does not need of
    a run is dead code, that `jit`, `trace` and `cut` leave out.

    Args:
        apply: of a merged network, `apply(params, *inputs) -> {task: output}`.

    Returns:
        `apply(params, {task: inputs}) -> {task: output}` of the tasks that are given;
        inputs are one array, or a tuple of the function's inputs.

    Raises:
        KeepError: when called, for a task that the network does not have.
        MismatchError: when called, for inputs that are not by task.

    Example:
        >>> import jax.numpy as jnp
        >>> both = lambda w, x: {"a": w * x, "b": w + x}
        >>> apart = each_its_input(both)
        >>> found = apart(jnp.float32(2), {"a": jnp.ones(1), "b": 5 * jnp.ones(1)})
        >>> {task: y.tolist() for task, y in found.items()}
        {'a': [2.0], 'b': [7.0]}

    Reference:
        MIMONet, 2023: networks of several inputs and outputs merged by MTZ.
    """

    def run(params: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        check_by_name(inputs, "inputs", "{task: input, ...}")
        found = {}
        for task, given in inputs.items():
            outputs = named(apply(params, *inputs_of((given,))))
            if task not in outputs:
                raise KeepError(f"no task {task!r}; {suggest(task, outputs)}")
            found[task] = outputs[task]
        return found

    return run
