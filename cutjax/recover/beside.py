"""An optimiser of the parameters alone, where a training adds entries to them.

`finetune` adds the parent and the state of a balance. An optimiser of the caller's may
hold a tree of the parameters (masks, labels of `optax.multi_transform`) or a state made
for them: it is called without what was added, and its state is its own.
"""

from collections.abc import Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cutjax.held import top_level
from cutjax.training.parts import heeding, updated, without


def beside(
    optimizer: optax.GradientTransformation, names: Collection[str]
) -> optax.GradientTransformationExtraArgs:
    """An optimiser that moves added entries by plain descent of rate 1.

    Args:
        optimizer: of the parameters, called as if nothing had been added.
        names: top-level entries that were added.

    Returns:
        An optimiser of all, with the state of `optimizer`.

    Example:
        >>> mask = {"w": True}  # knows nothing of "more"
        >>> tx = beside(optax.masked(optax.sgd(0.5), mask), ("more",))
        >>> params = {"w": jnp.ones(()), "more": jnp.ones(())}
        >>> change, _ = tx.update(params, tx.init(params), params)
        >>> {name: float(v) for name, v in change.items()}
        {'w': -0.5, 'more': -1.0}
    """
    told = heeding(optimizer)
    own = partial(without, names=names)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        added = {k: v for k, v in top_level(updates).items() if k in names}
        if "grad" in extra:
            extra["grad"] = own(extra["grad"])
        if "value_fn" in extra:
            held = {k: v for k, v in top_level(params).items() if k in names}
            whole = extra["value_fn"]
            extra["value_fn"] = lambda near: whole(updated(near, held))
        own_params = None if params is None else own(params)
        change, state = told.update(own(updates), state, own_params, **extra)
        return updated(change, jax.tree.map(jnp.negative, added)), state

    def init(params: Any) -> Any:
        return optimizer.init(own(params))

    return optax.GradientTransformationExtraArgs(init, update)
