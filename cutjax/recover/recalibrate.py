"""Normalisation statistics re-estimated exactly, in one pass over the data."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from cutjax._jit import jit
from cutjax.errors import DataError, MismatchError
from cutjax.inputs import inputs_of, rows
from cutjax.losses import wide
from cutjax.mirror import named_leaves
from cutjax.recover.averages import Found, floating, follow, of_batch
from cutjax.training.parts import updated

TrainApply = Callable[..., tuple[Any, Mapping[str, Any]]]

_VARIANCE = re.compile(r"(^|/)var((_ema/average)?(/value|/raw_value)?)$")
"""Ends of paths: `var`, as Haiku says it, and as NNX does, whose variables hold one."""


def recalibrate(
    train_apply: TrainApply,
    params: Any,
    batches: Iterable[Any],
    *,
    progress: bool = True,
) -> Any:
    """Running means and variances of what each layer sees, in constant memory.

    As if all batches had been one; but what is behind another BatchNorm is as training
    makes it, normalised batch by batch, so that batches should not be tiny.

    A batch statistic is read off updates from several starts: a running average moves
    by `new = m * old + (1 - m) * batch`, whatever its momentum m. Statistics named
    `mean` and `var` side by side combine as E[var_b] + Var[mean_b], batches weighted by
    their examples; others are averaged. Leaves that are not floating, such as counters
    and random keys, stay as they are. For every subset of tasks, shrink `train_apply`
    for it.

    Args:
        train_apply: `(params, *inputs) -> (outputs, updates)`; `updates` replace
            top-level entries of `params`. The smaller one is `shrink(train_apply,
            graph, keep)`.
        params: a dict or another mapping; entries named in `updates` hold the
            statistics.
        batches: `(x, ...)`, or bare inputs; `x` is the input, or a tuple of inputs.
            Batches of other sizes compile again.
        progress: show a progress bar.

    Returns:
        `params` with new statistics, in the types of the old ones.

    Raises:
        DataError: no data, statistics that are NaN or infinite, or batches that are
            lists, of which it is not clear whether they are `[x, ...]`.
        MismatchError: the function updates nothing, something unknown, or something
            by other than a running average that float32 can tell.
    """

    def statistics(params: Any, held: Any, x: tuple[Any, ...]) -> Found:
        def moved(starts: Sequence[Array]) -> list[Array]:
            start = updated(params, _with(held, starts))
            new = jax.tree.leaves(dict(train_apply(start, *x)[1]))
            pairs = zip(new, jax.tree.leaves(held), strict=True)
            return [leaf for leaf, old in pairs if floating(old)]

        return of_batch(moved, _statistics(held))

    measured = jit(statistics)
    held: Any = None
    found: dict[str, Array] = {}
    count = 0
    for batch in tqdm(batches, desc="recalibrate", disable=not progress, leave=False):
        x = inputs_of(batch)
        if held is None:
            held = _held(train_apply, params, x)
        new, n = measured(params, held, x), rows(x)
        _check(new, count)
        count += n
        found = _combined(found, new.batch, n / count) if found else new.batch
    if held is None:
        raise DataError("no data to recalibrate on; pass batches of (x, ...)")
    old = _statistics(held)
    found = follow(found, old)
    return updated(params, _with(held, [found[name] for name in old], narrow=True))


def _held(train_apply: TrainApply, params: Any, x: tuple[Any, ...]) -> dict[str, Any]:
    """The entries of the parameters that the function updates."""
    _, updates = jax.eval_shape(train_apply, params, *x)
    if not updates or set(updates) - set(params):
        raise MismatchError(
            f"train_apply returned updates for {list(updates or {})}, parameters "
            f"hold {list(params)}; use mode train=True, mutable=['batch_stats']"
        )
    return {key: params[key] for key in updates}


def _statistics(held: Any) -> dict[str, Array]:
    """What may be statistics, by path."""
    return {n: wide(leaf) for n, leaf in named_leaves(held).items() if floating(leaf)}


def _with(held: Any, values: Sequence[Array], *, narrow: bool = False) -> Any:
    """What is held with other statistics; in the types held, if they are to be narrow.

    The values may be wider than the statistics: bfloat16 rounds a momentum away.
    """
    new = iter(values)

    def put(old: Any) -> Any:
        if not floating(old):
            return old
        value = next(new)
        return value.astype(jnp.result_type(old)) if narrow else value

    return jax.tree.map(put, held)


def _check(found: Found, seen: int) -> None:
    for name, leaf in found.batch.items():
        if not np.isfinite(leaf).all():
            raise DataError(
                f"recalibrate: {name!r} is NaN or infinite in the batch after {seen} "
                "examples; look for NaN in the inputs or the parameters"
            )
    for name, off in found.off.items():
        if not off <= 1:
            low, high = (float(m) for m in found.kept[name])
            raise MismatchError(
                f"recalibrate: {name!r} is no running average `m * old + (1 - m) * "
                f"batch` that float32 can tell (m reads as {low:.4g} to {high:.4g}); "
                "let train_apply average in float32, and return leaves that are no "
                "averages as they were given"
            )


@jax.jit
def _combined(
    held: dict[str, Array], found: dict[str, Array], share: Float[Array, ""] | float
) -> dict[str, Array]:
    """Statistics so far with those of one more batch, which is `share` of it all."""

    def combine(name: str) -> Array:
        a, b = held[name], found[name]
        mixed = a + share * (b - a)
        mean = _VARIANCE.sub(r"\1mean\2", name)
        if mean != name and mean in held:
            return mixed + share * (1 - share) * (found[mean] - held[mean]) ** 2
        return mixed

    return {name: combine(name) for name in held}
