"""Masks as wrappers of an optax optimiser: `tx = masked(optax.adamw(1e-3), masks)`."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PRNGKeyArray, Shaped

from cutjax.errors import MismatchError
from cutjax.sparse.tree import Masks, apply_masks, map_like, map_masked

UpdateMasks: TypeAlias = Callable[..., Masks]
"""`update_masks(step, key, params, grads, masks, **extra) -> masks`, pure and jit-able.

`params` are masked, `grads` dense as given to `tx.update`, `extra` what else that got.
"""


class MaskedState(NamedTuple):
    """What stays, and the state of the wrapped optimiser."""

    masks: Masks
    inner: Any


class ScheduledState(NamedTuple):
    """Like `MaskedState`; `due`: the next step changes the masks."""

    step: Int[Array, ""]
    due: Bool[Array, ""]
    key: PRNGKeyArray
    masks: Masks
    inner: Any


def masked(
    inner: optax.GradientTransformation, masks: Masks
) -> optax.GradientTransformationExtraArgs:
    """An optimiser under which masked weights are zero and stay zero.

    Gradients, weight decay, momenta and parameters: all are zero where the mask is
    False, whatever `inner` does. Parameters that were not masked yet are so after the
    first step, if no later part of a chain scales the update; begin with
    `apply_masks(params, masks)` where that step's gradient matters. Dense speed.

    Args:
        inner: any optimiser.
        masks: by path; what has none trains as ever.

    Returns:
        An optimiser; `update` needs the parameters. The masks lie in its state.

    Raises:
        MismatchError: from `init`, for a mask that fits no parameter.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> params = {"kernel": jnp.ones((1, 2))}
        >>> tx = masked(optax.adamw(1e-3), {"kernel": jnp.array([[True, False]])})
        >>> state = tx.init(params)
        >>> updates, state = tx.update(params, state, params)
        >>> float(optax.apply_updates(params, updates)["kernel"][0, 1])
        0.0
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> MaskedState:
        return MaskedState(masks, inner.init(apply_masks(params, masks)))

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, MaskedState]:
        now = state.masks
        small = apply_masks(_given(params), now)
        updates, after = inner.update(
            apply_masks(updates, now), state.inner, small, **extra
        )
        updates = map_masked(landing, updates, now, params, now)
        return updates, MaskedState(now, mask_state(after, params, now))

    return optax.GradientTransformationExtraArgs(init, update)


def scheduled(
    inner: optax.GradientTransformation,
    update_masks: UpdateMasks,
    masks: Masks,
    *,
    every: int = 100,
    start: int = 0,
    stop: int | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """`masked` with masks that change: gradual pruning, drop and grow.

    At steps `start, start + every, ...`, up to and including `stop`, the masks are made
    anew from the dense gradient; that step is taken under the new masks already. What
    is dropped is zero at once, its momenta too, so that what grows starts from zero.

    Args:
        inner: any optimiser.
        update_masks: see `UpdateMasks`; `gradual`, `rigl`, `random_growth`, `disparse`.
        masks: those before the first change.
        every: steps between changes.
        start: the first step (counted from 0) that changes them.
        stop: the last step that may; None, all.
        seed: of the keys that `update_masks` gets.

    Returns:
        An optimiser. Further arguments of `update` go to `update_masks` and to `inner`,
        if that takes any.

    Raises:
        MismatchError: from `init`, for a mask that fits no parameter.

    Reference:
        Lee et al., JaxPruner (2304.14082): the sparsity wrapper of an optax optimiser.
    """
    inner = optax.with_extra_args_support(inner)

    due = cadence(every, start, stop)

    def init(params: Any) -> ScheduledState:
        step = jnp.zeros((), jnp.int32)
        given = jax.tree.map(jnp.asarray, masks)
        state = inner.init(apply_masks(params, given))
        return ScheduledState(step, due(step), jax.random.key(seed), given, state)

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, ScheduledState]:
        step, _, key, old, before = state
        small = apply_masks(_given(params), old)
        now = jax.lax.cond(
            state.due,
            lambda: update_masks(
                step, jax.random.fold_in(key, step), small, updates, old, **extra
            ),
            lambda: old,
        )
        # What is dropped now must leave the momenta before they are used.
        updates, after = inner.update(
            apply_masks(updates, now),
            mask_state(before, params, now),
            apply_masks(small, now),
            **extra,
        )
        updates = map_masked(landing, updates, now, params, old)
        after = mask_state(after, params, now)
        return updates, ScheduledState(step + 1, due(step + 1), key, now, after)

    return optax.GradientTransformationExtraArgs(init, update)


def cadence(
    every: int, start: int, stop: int | None
) -> Callable[[Int[Array, ""]], Bool[Array, ""]]:
    """Whether masks change at a step: `start, start + every, ...` up to `stop`."""

    def due(step: Int[Array, ""]) -> Bool[Array, ""]:
        inside = step >= start if stop is None else (step >= start) & (step <= stop)
        return inside & ((step - start) % every == 0)

    return due


def masks_of(state: Any) -> Masks:
    """The masks in an optimiser's state, however deep in chains and wrappers.

    Args:
        state: holds the state of one `masked` or `scheduled`.

    Returns:
        Its masks.

    Raises:
        MismatchError: there is none, or more than one.
    """
    kinds = (MaskedState, ScheduledState)
    nodes = jax.tree.leaves(state, is_leaf=lambda n: isinstance(n, kinds))
    found = [n for n in nodes if isinstance(n, kinds)]
    if len(found) != 1:
        raise MismatchError(
            f"{len(found)} masked optimisers in this state; pass that of one "
            "`masked(inner, masks)` or `scheduled(...)`"
        )
    return found[0].masks


def mask_state(state: Any, params: Any, masks: Masks) -> Any:
    """The state of an optimiser with zeros, where the parameters have them."""
    return map_like(lambda part: apply_masks(part, masks), state, params)


def _given(params: Any) -> Any:
    if params is None:
        raise MismatchError(
            "masks need the parameters: tx.update(grads, state, params)"
        )
    return params


def landing(
    update: Shaped[Array, "*shape"],
    now: Bool[Array, "*shape"],
    param: Shaped[Array, "*shape"],
    old: Bool[Array, "*shape"],
) -> Shaped[Array, "*shape"]:
    """The update that lands on masked parameters: exactly zero where `now` is False.

    What `old` masks counts as zero, also where the parameter is not zero yet.
    """
    # A narrower update could not carry -param exactly.
    kind = jnp.result_type(update.dtype, param.dtype)
    update, param = update.astype(kind), param.astype(kind)
    return jnp.where(now & old, update, jnp.where(now, update - param, -param))
