"""Whether parameters are still numbers, asked where they are shown or kept.

A loss is that of the parameters before its step: what the last update of an epoch made
is looked at by no loss.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cutjax._jit import jit
from cutjax.training.record import ADVICE, Place


def check_finite(params: Any, before: Any, place: Place) -> None:
    """Check that training made nothing NaN or infinite.

    Args:
        params: as they are now.
        before: as they were; what was not finite then (a mask of -inf) may stay so.
        place: how far the run has come.

    Raises:
        FloatingPointError: it did.
    """
    broken = _broken(params)
    made = [name for name in broken if name not in _broken(before)] if broken else []
    if made:
        raise FloatingPointError(
            f"fit: {made[0] or 'params'!r} holds NaN or infinity after step "
            f"{place.step} of epoch {place.epoch}, though the loss before that update "
            f"was finite; {ADVICE}"
        )


def _broken(params: Any) -> list[str]:
    """The paths of floating leaves that are not finite."""
    named = jax.tree_util.tree_leaves_with_path(params)
    real = [(p, v) for p, v in named if jnp.issubdtype(v.dtype, jnp.floating)]
    finite = jax.device_get(_asked()([leaf for _, leaf in real]))
    paths = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in real]
    return [path for path, fine in zip(paths, finite, strict=True) if not fine]


@functools.cache
def _asked() -> Callable[..., Any]:
    """One program for all leaves, kept from run to run."""
    return jit(lambda leaves: [jnp.isfinite(leaf).all() for leaf in leaves])
