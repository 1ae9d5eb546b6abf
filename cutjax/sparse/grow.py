"""How masks change in training: gradual pruning, RigL, random growth, DiSparse."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray, Shaped

from cutjax.errors import DataError
from cutjax.mirror import named_leaves
from cutjax.sparse.choose import best
from cutjax.sparse.counts import exact
from cutjax.sparse.optimizer import UpdateMasks
from cutjax.sparse.tree import Masks, filled

Step = Int[Array, ""] | int
Key = PRNGKeyArray | None


def gradual(
    end: float, *, start: int = 0, stop: int, begin: float = 1.0, power: float | int = 3
) -> UpdateMasks:
    """Gradual magnitude pruning: ever more of the smallest weights go, all leaves as
    one.

    The density is `end + (begin - end) (1 - (step - start) / (stop - start)) ** power`.
    What was masked never comes back.

    Args:
        end: the density from step `stop` on, reached exactly.
        start: the step at which it begins to fall.
        stop: the step at which it ends; a change must fall on it (see `every`).
        begin: the density at `start`.
        power: 3 in the paper; larger is earlier.

    Returns:
        For `scheduled(inner, gradual(...), masks)`, with masks that are True.

    Reference:
        Zhu & Gupta, To Prune, or Not to Prune, 2017, equation 1.
    """

    def update(
        step: Step, key: Key, params: Any, grads: Any, masks: Masks, **extra: Any
    ) -> Masks:
        named, weights = named_leaves(masks), named_leaves(params)
        size = sum(m.size for m in named.values())
        left = jnp.clip(1 - (step - start) / max(stop - start, 1), 0.0, 1.0)
        share = end + (begin - end) * left**power
        # Exact at the end, where float32 may not be.
        k = jnp.where(
            step >= stop, exact(end, size), jnp.round(share * size).astype(jnp.int32)
        )
        flat = [
            jnp.where(m, _magnitude(weights[n]), -1.0).ravel() for n, m in named.items()
        ]
        chosen = best(jnp.concatenate(flat), jnp.minimum(k, _count(named)))
        ends = np.cumsum([m.size for m in named.values()])[:-1]
        parts = zip(named.items(), jnp.split(chosen, ends), strict=True)
        return filled(masks, {n: part.reshape(m.shape) for (n, m), part in parts})

    return update


def rigl(stop: int, *, share: float = 0.3) -> UpdateMasks:
    """RigL: per leaf, drop the smallest weights, grow where the dense gradient is
    large.

    The share that is exchanged falls as a cosine, `share / 2 (1 + cos(pi step /
    stop))`. Each leaf keeps as many weights as it had. What was dropped may grow back
    at once and then keeps its value; what grows anew starts at zero.

    Args:
        stop: the step after which nothing is exchanged.
        share: exchanged at step 0.

    Returns:
        For `scheduled(inner, rigl(stop), masks, every=100, stop=stop)`.

    Reference:
        Evci et al., Rigging the Lottery, ICML 2020, algorithm 1.
    """

    def update(
        step: Step, key: Key, params: Any, grads: Any, masks: Masks, **extra: Any
    ) -> Masks:
        slopes = {name: _magnitude(g) for name, g in named_leaves(grads).items()}
        return _exchange(step, stop, share, params, masks, slopes.__getitem__)

    return update


def random_growth(stop: int, *, share: float = 0.3) -> UpdateMasks:
    """SET: per leaf, drop the smallest weights, grow anywhere.

    Args:
        stop: the step after which nothing is exchanged.
        share: exchanged at step 0; falls as in `rigl`.

    Returns:
        For `scheduled`; its `seed` decides what grows.

    Reference:
        Mocanu et al., Scalable training of artificial neural networks with adaptive
        sparse connectivity, Nature Communications 2018, algorithm 1 (there the signs
        are pruned apart, and the share is constant).
    """

    def update(
        step: Step, key: Key, params: Any, grads: Any, masks: Masks, **extra: Any
    ) -> Masks:
        if key is None:
            raise DataError("random growth draws: pass a key, as `scheduled` does")
        named = named_leaves(masks)
        keys = dict(zip(named, jax.random.split(key, len(named)), strict=True))

        def draw(name: str) -> Float[Array, "..."]:
            return jax.random.uniform(keys[name], named[name].shape)

        return _exchange(step, stop, share, params, masks, draw)

    return update


def disparse(stop: int, *, share: float = 0.3) -> UpdateMasks:
    """DiSparse, dynamic: drop the smallest weights, grow what any task wants most.

    Each task ranks the free places of a leaf by its own gradient; a place counts by the
    best of its ranks, so that what grows is the union of the tasks' first choices, as
    many of each as fit (equal ranks: the lower index). Where a task has no gradient, as
    in another's head, it has no say.

    Args:
        stop: the step after which nothing is exchanged.
        share: exchanged at step 0; falls as in `rigl`.

    Returns:
        For `scheduled`, whose `update` then takes the tasks' gradients:
        `tx.update(grads, state, params, task_grads={task: grads})`, each of the
        parameters' structure (None or zeros where a task has none). They are read only
        where `state.due`; give zeros of that structure at other steps.

    Reference:
        Sun et al., DiSparse, CVPR 2022, section 3.3 (dynamic sparse training).
    """

    def update(
        step: Step,
        key: Key,
        params: Any,
        grads: Any,
        masks: Masks,
        task_grads: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> Masks:
        if not task_grads:
            raise DataError(
                "disparse grows by the gradient of each task: call "
                "tx.update(grads, state, params, task_grads={task: grads, ...})"
            )
        each = [named_leaves(g) for g in task_grads.values()]

        def wanted(name: str, free: Bool[Array, "*s"]) -> Int[Array, "*s"]:
            slopes = [_magnitude(g[name]) for g in each if name in g]
            if not slopes:
                return jnp.full(free.shape, -free.size, jnp.int32)
            return -jnp.min(jnp.stack([_rank(s, free) for s in slopes]), 0)

        return _exchange(step, stop, share, params, masks, wanted, ranked=True)

    return update


def _exchange(
    step: Step,
    stop: int,
    share: float,
    params: Any,
    masks: Masks,
    score: Callable[..., Any],
    *,
    ranked: bool = False,
) -> Masks:
    """Drop by magnitude, grow by `score`; the number in each leaf does not change."""
    weights, out = named_leaves(params), {}
    for name, mask in named_leaves(masks).items():
        mask = jnp.asarray(mask)
        number = mask.sum()
        drop = annealed(step, stop, share, number)
        strength = jnp.where(mask, _magnitude(weights[name]), -1.0)
        stays = best(strength.ravel(), number - drop).reshape(mask.shape)
        free = ~stays
        value = score(name, free) if ranked else score(name)
        out[name] = stays | grown(value, free, drop)
    return filled(masks, out)


def annealed(
    step: Step, stop: int, share: float, number: Int[Array, ""]
) -> Int[Array, ""]:
    """How many of `number` are exchanged: a share that falls as a cosine."""
    angle = jnp.pi * jnp.minimum(jnp.asarray(step) / max(stop, 1), 1.0)
    now = share / 2 * (1 + jnp.cos(angle))
    return jnp.floor(now * number + 1e-6).astype(jnp.int32)


def grown(
    score: Num[Array, "*shape"], free: Bool[Array, "*shape"], number: Int[Array, ""]
) -> Bool[Array, "*shape"]:
    """The `number` free places of the highest score."""
    floats = jnp.issubdtype(score.dtype, jnp.floating)
    worst = -jnp.inf if floats else jnp.iinfo(score.dtype).min
    return best(jnp.where(free, score, worst).ravel(), number).reshape(free.shape)


def _magnitude(value: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    """|value| as float32; NaN counts as zero, that counts stay exact."""
    size = jnp.abs(value).astype(jnp.float32)
    return jnp.where(jnp.isnan(size), 0.0, size)


def _rank(
    score: Float[Array, "*shape"], free: Bool[Array, "*shape"]
) -> Int[Array, "*shape"]:
    """0 for the highest of the free places; the size for zeros and places taken."""
    flat = jnp.where(free, score, 0.0).ravel()
    order = jnp.argsort(-flat, stable=True)
    rank = jnp.zeros(flat.size, jnp.int32).at[order].set(jnp.arange(flat.size))
    return jnp.where(flat > 0, rank, flat.size).reshape(score.shape)


def _count(masks: Mapping[str, Bool[Array, "..."]]) -> Int[Array, ""]:
    return jnp.sum(jnp.stack([m.sum() for m in masks.values()]))


def dense(tree: Any) -> Masks:
    """Masks that keep all: True for every weight, None where the tree has none."""
    return jax.tree.map(lambda v: jnp.ones(np.shape(v), bool), tree)
