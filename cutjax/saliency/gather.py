"""One streaming pass over the calibration data for all criteria asked for.

The state has constant size. Sums over batches carry their rounding error along (Kahan),
so that many small batches sum to what few large ones do.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from cutjax._jit import jit
from cutjax.errors import CutjaxError, DataError
from cutjax.given import check_known
from cutjax.graph import Graph
from cutjax.inputs import IN_FRONT, first
from cutjax.placed import relaxed
from cutjax.saliency.criterion import Criterion, Problem, Scores, Sums
from cutjax.saliency.doubts import Read, reads_of, warn_of_few, warn_of_zeros
from cutjax.saliency.mixing import warn_of_mixing
from cutjax.saliency.seen import look
from cutjax.saliency.stream import (
    Batch,
    Loss,
    check_finite,
    padded,
    rebatched,
)
from cutjax.saliency.unbounded import BACKWARDS, no_way_back
from cutjax.shrink import check_params


class State(NamedTuple):
    """What was gathered so far; a pytree of arrays, to be kept and gone on with.

    `total`: per measurement, the sums; `carry`: their rounding errors; `once`: what is
    the same in every batch. `examples` and `batches` seen. `bad`: per task, the first
    batch (counted from 1) whose loss was NaN or infinite, 0 for none.
    """

    total: dict[str, Any]
    carry: dict[str, Any]
    once: dict[str, Any]
    examples: Int[Array, ""]
    batches: Int[Array, ""]
    bad: Int[Array, "t"]


def gather(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    losses: Mapping[str, Loss],
    batches: Iterable[Batch],
    *,
    criteria: Mapping[str, Criterion],
    state: State | None = None,
    batch_size: int | None = None,
    sharding: Any = None,
    progress: bool = True,
) -> State:
    """Read the calibration data once, for all criteria.

    Args:
        apply: the full function.
        params: its parameters.
        graph: its graph.
        losses: per task, `loss(output, target) -> scalar`.
        batches: `(x, {task: target})`.
        criteria: what to measure for.
        state: what an earlier call gathered with the same criteria; sums go on.
        batch_size: examples per step, whatever the sizes of the batches: results are
            then the same bit for bit however the data are divided. Not given: that of
            the first batch.
        sharding: of the examples, such as `NamedSharding(mesh, P("data"))`.
        progress: show a progress bar.

    Returns:
        The state, for `finish`. Warns if the first example has another answer in its
        batch than alone: rows that are not examples would be scored as such. And if a
        criterion of second moments sees fewer rows than channels.

    Raises:
        DataError: empty data, a missing target, a loss that is no scalar, leaves of
            inputs and targets that do not have the examples in front.
        CutjaxError: a derivative is asked for through a loop of unknown length.
    """
    check_params(params, graph)
    params = relaxed(params)
    problem = Problem(apply, params, graph, losses)
    reads: set[Read] = set()
    step = _step(problem, criteria, reads)
    size = _batch_size(criteria, batch_size)
    if size is not None:
        batches = rebatched(batches, size, problem.tasks)
    label = "saliency: " + ", ".join(criteria)
    for inputs, targets, weights in padded(
        batches, problem.tasks, progress=progress, label=label, sharding=sharding
    ):
        args = (params, inputs, targets, weights)
        first_step = state is None
        if state is None:
            state = _zeros(_shapes(step, problem, inputs, args))
        state = step(state, *args)
        if first_step:
            warn_of_mixing(problem, inputs)
    # Under a transformation nothing is known, which `finish` says.
    if state is not None and not isinstance(state.examples, Tracer):
        warn_of_few(reads, criteria, int(state.examples))
    return state  # type: ignore[return-value]  (no batch is an error above)


def finish(
    apply: Callable[..., Any] | None,
    params: Any,
    graph: Graph,
    losses: Mapping[str, Loss | None],
    *,
    criteria: Mapping[str, Criterion],
    state: State | None,
) -> dict[str, dict[str, Scores]]:
    """Scores from what was gathered.

    Args:
        apply: the full function.
        params: its parameters.
        graph: its graph.
        losses: per task; None where no criterion needs data.
        criteria: some or all of those gathered for.
        state: from `gather`; None if no criterion needs data.

    Returns:
        Per criterion, task and group, f32[n]. Warns of a task whose loss has no
        gradient.

    Raises:
        DataError: a loss or a score is NaN or infinite; names task, batch, group.
    """
    check_known("saliency", params, state)
    problem = Problem(apply, params, graph, losses)
    if state is not None:
        _check_losses(problem, state)
    out = {}
    for name, criterion in criteria.items():
        sums = None
        if criterion.measure is not None:
            sums = _sums(state, criterion, name)
        out[name] = criterion.scores(problem, sums)
        check_finite(out[name], name)
        warn_of_zeros(problem, name, criterion.measure, out[name])
    return out


def score(
    apply: Callable[..., Any] | None,
    params: Any,
    graph: Graph,
    losses: Mapping[str, Loss] | Iterable[str] | None,
    batches: Iterable[Batch] | None,
    *,
    criteria: Mapping[str, Criterion],
    **options: Any,
) -> dict[str, dict[str, Scores]]:
    """`gather`, where some criterion needs data, and `finish`.

    Args:
        apply: the full function; may be None where no criterion needs data.
        params: its parameters.
        graph: its graph.
        losses: per task; names of tasks (or None, for all) where none needs data.
        batches: calibration data; may be None where no criterion needs data.
        criteria: by the name to give their scores.
        **options: see `gather`.

    Returns:
        Per criterion, task and group, f32[n].

    Raises:
        DataError: see `gather` and `finish`.
    """
    state = None
    if any(c.measure is not None for c in criteria.values()):
        if not isinstance(losses, Mapping) or not losses:
            raise DataError(
                f"no loss given; pass {{task: loss}} for some of {graph.tasks}"
            )
        if batches is None or apply is None:
            raise DataError(f"{', '.join(criteria)}: pass the function and batches")
        full = (apply, params, graph, losses)
        state = gather(*full, batches, criteria=criteria, **options)
    elif not isinstance(losses, Mapping):
        chosen = graph.check_tasks(tuple(losses) if losses else None)
        losses = dict.fromkeys(chosen)
    return finish(apply, params, graph, losses, criteria=criteria, state=state)


def _step(
    problem: Problem, criteria: Mapping[str, Criterion], reads: set[Read]
) -> Callable[..., State]:
    """One batch into the state; jitted once for all batches. Notes what is read."""
    measures = {c.measure.name: c.measure for c in criteria.values() if c.measure}
    needs = frozenset().union(*(m.needs for m in measures.values()))
    see = look(problem, needs)

    def step(state: State | None, params, inputs, targets, weights) -> State:
        done = jnp.int32(0) if state is None else state.examples
        seen = see(params, inputs, targets, weights, done)
        reads.update(reads_of(seen))
        here = problem._replace(params=params)
        more = {name: m.of(seen, here) for name, m in measures.items()}
        once = {name: m.once(seen, here) for name, m in measures.items() if m.once}
        finite = (jnp.isfinite(seen.losses) | (weights[:, None] == 0)).all(0)
        first = State(more, more, once, done, done, jnp.zeros(len(finite), jnp.int32))
        before = first if state is None else state
        total, carry = _kahan(before.total, before.carry, more)
        bad = jnp.where((before.bad == 0) & ~finite, before.batches + 1, before.bad)
        examples = before.examples + weights.sum(dtype=jnp.int32)
        return State(total, carry, once, examples, before.batches + 1, bad)

    return jit(step)


def _shapes(step: Callable, problem: Problem, inputs: Any, args: Any) -> Any:
    """What a step leaves; an error if the function takes no example alone."""
    try:
        return jax.eval_shape(step, None, *args)
    except NotImplementedError as error:
        raise DataError(
            f"JAX has no rule for a derivative of this function: {error}; ask for "
            "criteria of first derivatives, as taylor or joint"
        ) from error
    except (TypeError, ValueError) as error:
        if str(error).startswith(BACKWARDS):
            raise CutjaxError(no_way_back(problem, inputs)) from error
        if isinstance(error, CutjaxError) or not _only_whole(problem, inputs):
            raise
        raise DataError(
            f"the function takes the batch, but no example of it alone: {IN_FRONT}"
        ) from error


def _only_whole(problem: Problem, inputs: tuple[Any, ...]) -> bool:
    def takes(inputs: tuple[Any, ...]) -> bool:
        try:
            _ = jax.eval_shape(problem.apply, problem.params, *inputs)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return False
        return True

    return takes(inputs) and not takes(first(inputs, 1))


def _kahan(total: Any, carry: Any, more: Any) -> tuple[Any, Any]:
    """The sum and what it rounded away, after one more summand."""
    add = jax.tree.map(jnp.subtract, more, carry)
    after = jax.tree.map(jnp.add, total, add)
    lost = jax.tree.map(lambda a, t, m: (a - t) - m, after, total, add)
    return after, lost


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _batch_size(criteria: Mapping[str, Criterion], asked: int | None) -> int | None:
    """The size that criteria define themselves by, or the one asked for."""
    sizes = {name: c.batch for name, c in criteria.items() if c.batch is not None}
    if asked is not None:
        sizes["batch_size"] = asked
    if len(set(sizes.values())) > 1:
        raise DataError(
            f"one pass has one batch size, but these differ: {sizes}; give them the "
            "same `batch`, or ask in two calls"
        )
    return next(iter(sizes.values()), None)


def _sums(state: State | None, criterion: Criterion, name: str) -> Sums:
    measure = criterion.measure
    if state is None or measure is None or measure.name not in state.total:
        raise DataError(f"nothing was gathered for {name!r}: gather with it")
    total = jax.tree.map(np.asarray, state.total[measure.name])
    once = jax.tree.map(np.asarray, state.once.get(measure.name))
    return Sums(total, once, int(state.examples))


def _check_losses(problem: Problem, state: State) -> None:
    for task, batch in zip(problem.tasks, np.asarray(state.bad), strict=True):
        if batch:
            raise DataError(
                f"the loss of task {task!r} is NaN or infinite in batch {batch} of "
                f"{int(state.batches)}; look for NaN in inputs, targets and "
                "parameters, and for a loss that overflows. Losses are taken of one "
                "example at a time: a mean over labelled ones, as (l * m).sum() / "
                "m.sum() or nanmean, is 0/0 where there is none: divide by "
                "jnp.maximum(m.sum(), 1)"
            )
