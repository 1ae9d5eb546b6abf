"""Streaming calibration data: one shape for all batches, one step, one pass."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from cutjax.errors import DataError, suggest
from cutjax.graph import Graph
from cutjax.inputs import examples
from cutjax.placed import automatic, divided, relaxed

Loss = Callable[[Any, Any], Any]
Batch = tuple[Any, Any]
"""`(x, {task: target})`, or `(x, target)` where there is one task: see `pair_of`."""
KEY = jax.dtypes.prng_key


def padded(
    batches: Iterable[Batch],
    tasks: Iterable[str],
    *,
    progress: bool,
    label: str,
    sharding: Any = None,
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any], np.ndarray]]:
    """Batches of the size of the first, with weights that are zero for the padding.

    Args:
        batches: `(x, {task: target})`, see `pair_of`; `x` is the input, or a tuple of
            inputs. Leaves without an axis are each example's, and stay as they are.
        tasks: the targets to hand on.
        progress: show a bar.
        label: what the bar says.
        sharding: of the examples over devices; sizes are padded to fit.

    Yields:
        `(inputs, targets, weights f32[n])`.

    Raises:
        DataError: no batch, a target that is missing, leaves that disagree on the
            number of examples, or batches that grow.
    """
    sharding = automatic(sharding)
    size, parts = 0, 1 if sharding is None else sharding.num_devices
    total = len(batches) if hasattr(batches, "__len__") else None  # type: ignore[arg-type]
    tasks = tuple(tasks)
    for batch in tqdm(
        batches, desc=label, disable=not progress, total=total, leave=False
    ):
        x, y = pair_of(batch, tasks)
        inputs = x if isinstance(x, tuple) else (x,)
        missing = [task for task in tasks if task not in y]
        if missing:
            raise DataError(
                f"no target for task {missing[0]!r}; {suggest(missing[0], y)}"
            )
        inputs, targets = relaxed((inputs, {task: y[task] for task in tasks}))
        n = examples(inputs=inputs, targets=targets)
        size = size or -(-n // parts) * parts
        if n > size or n == 0:
            raise DataError(f"a batch of {n} examples after one of {size}")
        inputs, targets = jax.tree.map(partial(_pad, more=size - n), (inputs, targets))
        weights = (np.arange(size) < n).astype(np.float32)
        if sharding is not None:
            inputs, targets = divided((inputs, targets), sharding)
        yield inputs, targets, weights
    if size == 0:
        raise DataError(
            "the calibration data is empty; batches must yield (x, {task: target}). A "
            "generator can be read only once: pass a list, or make a new one"
        )


def pair_of(batch: Any, tasks: Sequence[str]) -> tuple[Any, Mapping[str, Any]]:
    """A batch as `(x, {task: target})`.

    Args:
        batch: that, or `(x, target)` where there is one task.
        tasks: those that have a loss.

    Raises:
        DataError: no pair, or one target for several tasks.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise DataError(
            f"a batch is a pair, (x, {{task: target}}), not {_kind(batch)}: pass "
            "batches=[(x, {task: target}), ...]"
        )
    x, y = batch
    if isinstance(y, Mapping):
        return x, y
    if len(tasks) != 1:
        raise DataError(
            f"targets are a dict {{task: array}}, for the tasks {list(tasks)}; got "
            f"{_kind(y)}"
        )
    return x, {tasks[0]: y}


def _kind(value: Any) -> str:
    """What something is, for an error."""
    if hasattr(value, "shape"):
        return f"an array {list(value.shape)}"
    several = isinstance(value, tuple | list)
    return f"a {type(value).__name__}" + (f" of {len(value)}" if several else "")


def rebatched(
    batches: Iterable[Batch], size: int, tasks: Sequence[str] = ()
) -> Iterator[Batch]:
    """The same examples in the same order, `size` at a time.

    Args:
        batches: `(x, {task: target})` of any sizes.
        size: examples per batch; the last one may hold fewer.
        tasks: as in `pair_of`.

    Yields:
        `(x, {task: target})`.
    """
    held: list[Any] = []
    number = 0
    for x, y in (pair_of(batch, tasks) for batch in batches):
        held.append((x, dict(y)))
        number += examples(inputs=x, targets=dict(y))
        if number < size:
            continue
        whole = _joined(held)
        starts = range(0, number, size)
        parts = [jax.tree.map(partial(_slice, start=s, n=size), whole) for s in starts]
        number %= size
        held = [parts.pop()] if number else []
        yield from parts
    if held:
        yield _joined(held)


def _joined(parts: list[Any]) -> Any:
    """Batches end to end; on the host, unless there is but one."""
    if len(parts) == 1:
        return parts[0]
    return jax.tree.map(_end_to_end, *parts)


def _end_to_end(*parts: Any) -> Any:
    first, *others = parts
    if np.ndim(first) == 0:
        if any(bool(a != first) for a in others):
            raise DataError(
                f"batches are joined to other sizes, but {first!r}, which is each "
                "example's, is another in the next: give one per example, or no "
                "`batch_size`"
            )
        return first
    if isinstance(first, jax.Array) and jnp.issubdtype(first.dtype, KEY):
        return jnp.concatenate(parts)
    return np.concatenate([np.asarray(a) for a in parts])


def _slice(a: Any, start: int, n: int) -> Any:
    return a[start : start + n] if np.ndim(a) else a


def _pad(a: Any, more: int) -> Any:
    if more == 0 or np.ndim(a) == 0:
        return a
    return jnp.concatenate([jnp.asarray(a), jnp.repeat(jnp.asarray(a[:1]), more, 0)])


def task_losses(losses: Mapping[str, Loss], graph: Graph) -> Callable[..., jax.Array]:
    """`(outputs, targets) -> f32[tasks]`, checked against the graph.

    Raises:
        KeepError: a loss for an unknown task.
        DataError: no loss, or one that is not a scalar.
    """
    if not losses:
        raise DataError(f"no loss given; pass {{task: loss}} for some of {graph.tasks}")
    tasks = graph.check_tasks(tuple(losses))

    def compute(outputs: Any, targets: Mapping[str, Any]) -> jax.Array:
        outputs = outputs if isinstance(outputs, dict) else {"output": outputs}
        values = [losses[t](outputs[t], targets[t]) for t in tasks]
        for task, value in zip(tasks, values, strict=True):
            if jnp.shape(value) != ():
                raise DataError(
                    f"the loss of {task!r} has shape {jnp.shape(value)}, not a scalar: "
                    "take its mean over the batch"
                )
        return jnp.stack([jnp.asarray(v, jnp.float32) for v in values])

    return compute


def singles(tree: Any) -> tuple[Any, Any]:
    """Each example as a batch of one, and the axes for `vmap`."""
    single = jax.tree.map(lambda a: a[:, None] if np.ndim(a) else a, tree)
    return single, jax.tree.map(lambda a: 0 if np.ndim(a) else None, tree)


def check_finite(scores: Mapping[str, Mapping[str, np.ndarray]], what: str) -> None:
    """Check that no score is NaN or infinite.

    Raises:
        DataError: names the task, the group, and how many channels are affected.
    """
    for task, groups in scores.items():
        for name, values in groups.items():
            bad = int((~np.isfinite(values)).sum())
            if bad:
                raise DataError(
                    f"{what}: {bad} of {values.size} scores of group {name!r} for task "
                    f"{task!r} are NaN or infinite; look for NaN in the inputs, the "
                    "targets or the parameters, and for a loss that overflows"
                )
