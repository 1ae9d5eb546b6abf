"""Normalisation statistics re-estimated exactly, in one pass over the data."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from cutjax._jit import jit
from cutjax.errors import DataError, MismatchError
from cutjax.inputs import inputs_of, rows
from cutjax.mirror import named_leaves, path_name
from cutjax.training.parts import held_as, updated


def recalibrate(
    train_apply: Callable[..., tuple[Any, Mapping[str, Any]]],
    params: Any,
    batches: Iterable[Any],
    *,
    progress: bool = True,
) -> Any:
    """Running means and variances as if all batches had been one, in constant memory.

    A batch statistic is read off two updates, from zeros and from ones: a running
    average moves by `new = m * old + (1 - m) * batch`, whatever its momentum m.
    Statistics named `mean` and `var` side by side combine as E[var_b] + Var[mean_b],
    batches weighted by their examples; others are averaged. For every subset of tasks,
    shrink `train_apply` for it.

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
        `params` with new statistics.

    Raises:
        DataError: no data, statistics that are NaN or infinite, or batches that are
            lists, of which it is not clear whether they are `[x, ...]`.
        MismatchError: the function updates nothing, or something unknown.
    """

    def statistics(params: Any, x: tuple[Any, ...]) -> Any:
        _, updates = train_apply(params, *x)
        if not updates or set(updates) - set(params):
            raise MismatchError(
                f"train_apply returned updates for {list(updates or {})}, parameters "
                f"hold {list(params)}; use mode train=True, mutable=['batch_stats']"
            )

        def moved(value: float) -> Any:
            held = {key: params[key] for key in updates}
            start = jax.tree.map(lambda a: jnp.full_like(a, value), held)
            return train_apply(updated(params, start), *x)[1]

        def batch(zero: Any, one: Any, old: Any) -> Any:
            # A statistic that does not move (momentum 1) stays what it was.
            kept = one - zero
            return jnp.where(kept >= 1, old, zero / (1 - kept))

        zeros, ones = moved(0.0), moved(1.0)
        old = held_as(zeros, {k: params[k] for k in updates})
        return jax.tree.map(batch, zeros, ones, old)

    measured = jit(statistics)
    held: Any = None
    count = 0
    for batch in tqdm(batches, desc="recalibrate", disable=not progress, leave=False):
        x = inputs_of(batch)
        found, n = measured(params, x), rows(x)
        _check(found, count)
        count += n
        held = found if held is None else _combined(held, found, n / count)
    if held is None:
        raise DataError("no data to recalibrate on; pass batches of (x, ...)")
    return updated(params, held)


def _check(found: Any, seen: int) -> None:
    for name, leaf in named_leaves(found).items():
        if not np.isfinite(leaf).all():
            raise DataError(
                f"recalibrate: {name!r} is NaN or infinite in the batch after {seen} "
                "examples; look for NaN in the inputs or the parameters"
            )


@jax.jit
def _combined(held: Any, found: Any, share: Float[Array, ""] | float) -> Any:
    """Statistics so far with those of one more batch, which is `share` of it all."""
    before, now = named_leaves(held), named_leaves(found)

    def combine(path: tuple[Any, ...], a: Array, b: Array) -> Array:
        mixed = a + share * (b - a)
        parent, _, kind = path_name(path).rpartition("/")
        mean = f"{parent}/mean"
        if kind == "var" and mean in before:
            return mixed + share * (1 - share) * (now[mean] - before[mean]) ** 2
        return mixed

    return jax.tree_util.tree_map_with_path(combine, held, found)
