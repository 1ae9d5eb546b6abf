"""Normalisation statistics re-estimated exactly, in one pass over the data."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from cutjax.errors import DataError, MismatchError
from cutjax.mirror import named_leaves, path_name


def recalibrate(
    train_apply: Callable[..., tuple[Any, Mapping[str, Any]]],
    params: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Running means and variances as if all batches had been one.

    A batch statistic is read off two updates, from zeros and from ones: a running
    average moves by `new = m * old + (1 - m) * batch`, whatever its momentum m.
    Statistics named `mean` and `var` side by side combine as E[var_b] + Var[mean_b];
    others are averaged.

    Args:
        train_apply: `(params, x) -> (outputs, updates)`; `updates` replace top-level
            entries of `params`. The smaller one is `shrink(train_apply, graph, keep)`.
        params: a dict; entries named in `updates` hold the statistics.
        batches: `(x, ...)`, or bare inputs; batches of other sizes compile again.
        progress: show a progress bar.

    Returns:
        `params` with new statistics.

    Raises:
        DataError: no data.
        MismatchError: the function updates nothing, or something unknown.
    """

    @jax.jit
    def statistics(params: Any, x: Any) -> Any:
        _, updates = train_apply(params, x)
        if not updates or set(updates) - set(params):
            raise MismatchError(
                f"train_apply returned updates for {list(updates or {})}, parameters "
                f"hold {list(params)}; use mode train=True, mutable=['batch_stats']"
            )

        def moved(value: float) -> Any:
            held = {key: params[key] for key in updates}
            start = jax.tree.map(lambda a: jnp.full_like(a, value), held)
            return train_apply({**params, **start}, x)[1]

        def batch(zero: Any, one: Any, old: Any) -> Any:
            # A statistic that does not move (momentum 1) stays what it was.
            kept = one - zero
            return jnp.where(kept < 1, zero / (1 - kept), old)

        zeros, ones = moved(0.0), moved(1.0)
        return jax.tree.map(batch, zeros, ones, {k: params[k] for k in updates})

    seen = []
    for batch in tqdm(batches, desc="recalibrate", disable=not progress, leave=False):
        x = batch[0] if isinstance(batch, tuple) else batch
        seen.append(statistics(params, x))
    if not seen:
        raise DataError("no data to recalibrate on; pass batches of (x, ...)")
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seen)
    return {**params, **_combined(stacked)}


def _combined(stacked: Any) -> Any:
    """Statistics of all batches as one; equal weights."""
    named = named_leaves(stacked)

    def combine(path: tuple[Any, ...], leaf: Any) -> Any:
        parent, _, kind = path_name(path).rpartition("/")
        means = named.get(f"{parent}/mean")
        if kind == "var" and means is not None:
            return leaf.mean(0) + means.var(0)
        return leaf.mean(0)

    return jax.tree_util.tree_map_with_path(combine, stacked)
