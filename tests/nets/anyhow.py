"""Random functions: steps drawn one after another, two tasks at the end."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .base import Net, randomise
from .steps import STEPS, Draw, Shape, Step

WRAPS = (lambda f: f, lambda f: f, jax.jit, jax.checkpoint)
MOST = 2_000


def anyhow(seed: int) -> tuple[Net, list[str]]:
    """A net and the names of its steps."""
    draw = Draw(seed)
    shape = (2, *(int(n) for n in draw.rng.integers(3, 6, draw.rng.integers(1, 4))))
    x = jnp.asarray(draw.rng.normal(size=shape), jnp.float32)
    steps: list[Step] = []
    names: list[str] = []
    wanted = int(draw.rng.integers(4, 10))
    while len(steps) < wanted:
        # The first makes channels of an input's axis.
        name = draw.one_of(*STEPS) if steps else "dense"
        found = _fitting(draw, name, shape)
        if found is not None:
            made, shape = found
            steps.append(made)
            names.append(name)
    a, b = draw.param(int(np.prod(shape[1:])), 2), draw.param(shape[-1], 3)

    def apply(p: Any, x: jax.Array) -> dict[str, jax.Array]:
        for made in steps:
            x = made(p, x)
        pooled = x.mean(tuple(range(1, x.ndim - 1)))
        return {"a": x.reshape(len(x), -1) @ p[a], "b": jnp.tanh(pooled) @ p[b]}

    params = randomise(draw.shapes)
    net = Net(f"anyhow{seed}", apply, params, (x,), exact=False, tasks=("a", "b"))
    return net, names


def _fitting(draw: Draw, name: str, shape: Shape) -> tuple[Step, Shape] | None:
    """A step and the shape that it makes, unless it does not fit or makes too much."""
    before = dict(draw.shapes)
    made = STEPS[name](draw, shape)
    if made is not None:
        made = draw.one_of(*WRAPS)(made)
        given = jax.ShapeDtypeStruct(shape, jnp.float32)
        after = jax.eval_shape(made, draw.shapes, given).shape
        if len(after) <= 5 and np.prod(after) <= MOST:
            return made, after
    draw.shapes = before
    return None
