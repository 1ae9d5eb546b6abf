"""Anybody's own model for the command line: `--source package.module:function`."""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cutjax.data import Dataset
from cutjax.data.examples import inputs_in, shapes
from cutjax.errors import CutjaxError, suggest
from cutjax.graph import Graph
from cutjax.metrics import named
from cutjax.trace import trace


class SourceError(CutjaxError):
    """A `package.module:function` that cannot be found, or answers something else."""


class Job(NamedTuple):
    """A trained model and its data.

    Attributes:
        apply: `apply(params, x) -> {task: logits}`, one entry per task of the data. Of
            a tuple `x`, `apply(params, *x)`.
        train_apply: `(params, x) -> (outputs, updates)` in training, see
            `cutjax.fit.fit`; None where training is no different (no batch statistics,
            no dropout).
        params: the trained parameters.
        dataset: four splits with labels by task.
    """

    apply: Callable[..., Any]
    train_apply: Callable[..., Any] | None
    params: Any
    dataset: Dataset


def from_source(spec: str) -> Job:
    """Calls somebody's function for its job.

    Args:
        spec: `package.module:function`, found from the current folder or installed; the
            function takes no arguments and returns a `Job`.

    Returns:
        The job, checked: its model answers every task of its data.

    Raises:
        SourceError: no such module or function, or something else than a job.
    """
    job = _function(spec)()
    if not isinstance(job, Job):
        raise SourceError(
            f"--source {spec} returned {type(job).__name__}, not a Job; end it with "
            "`return cutjax.source.Job(apply, train_apply, params, dataset)`"
        )
    x = inputs_in(shapes(job.dataset.calibration.x, 1))
    tasks = named(jax.eval_shape(job.apply, job.params, *x))
    missing = [task for task in job.dataset.tasks if task not in tasks]
    if missing:
        raise SourceError(
            f"--source {spec}: the data label {missing}, but the model answers "
            f"{sorted(tasks)}; name both alike"
        )
    return job


def _function(spec: str) -> Callable[[], Any]:
    module_name, colon, name = spec.partition(":")
    if not (module_name and colon and name.isidentifier()):
        raise SourceError(
            f"--source {spec!r} is not of the form package.module:function"
        )
    # A console script does not look into the current folder, as `python -m` does.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; what it imports is not
        raise SourceError(
            f"--source {spec}: no module {error.name!r} in {Path.cwd()} or installed; "
            "run the command from the folder that holds it, or set PYTHONPATH"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [n for n, v in vars(module).items() if inspect.isfunction(v)]
        raise SourceError(
            f"--source {spec}: {module_name} has no function {name!r}; "
            f"{suggest(name, known)}"
        )
    needed = [p for p in inspect.signature(function).parameters.values() if _must(p)]
    if needed:
        raise SourceError(
            f"--source {spec} takes {', '.join(p.name for p in needed)}; it is called "
            "without arguments, so give them defaults"
        )
    return function


def _must(parameter: inspect.Parameter) -> bool:
    variadic = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind not in variadic


def graph_of(apply: Callable[..., Any], params: Any, dataset: Dataset) -> Graph:
    """The graph of a model for one example of its data; costs are per example."""
    return trace(apply, params, *inputs_in(shapes(dataset.calibration.x, 1)))
