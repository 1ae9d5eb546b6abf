"""What a specimen net is, and how one is filled with telling random numbers."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Kept = Callable[[str, int], np.ndarray]
"""`kept(path, axis)`: the original positions along that axis which a cut left."""


@dataclass(frozen=True, eq=False)
class Net:
    """A named function with parameters, and what is known about it by hand.

    `expected` holds the sizes of the free groups, derived on paper. `exact` says that
    the cut function equals the masked one. Where it is False a statistic crosses a cut
    axis, and `narrow(kept)` is the same code built narrower.

    False where a law has nothing to say: `by_weights` unless every contraction over a
    group is against an axis -2 of a leaf named `kernel`, so that a gate can be checked
    against the gradient of those kernels; `reverse` for a while loop, and `countable`
    for one that multiplies matrices, of which nobody counts the FLOPs; `permutable`
    where a group sits twice in an axis; `true_derivative` where an activation brings
    its own rule, or rounds, which finite differences know nothing of; `train_exact`
    where train mode draws random bits.
    """

    name: str
    apply: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    expected: tuple[int, ...] | None = None
    exact: bool = True
    narrow: Callable[[Kept], Callable[..., Any]] | None = None
    train_apply: Callable[..., Any] | None = None
    train_inputs: tuple[Any, ...] = ()
    train_exact: bool = True
    permutable: bool = True
    by_weights: bool = True
    reverse: bool = True
    countable: bool = True
    true_derivative: bool = True
    tasks: tuple[str, ...] = ("output",)


def path_of(path: Any) -> str:
    """`params/Dense_0/kernel` of a tree path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def randomise(shapes: Any) -> Any:
    """Fills every leaf, statistics and biases included, so that a slip shows.

    A value depends on the path and shape only: two builds of a net agree.
    """

    def leaf(path: Any, like: Any) -> jax.Array:
        name = path_of(path)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if {"scale", "var", "var_ema"} & set(name.split("/")[-2:]):
            value = rng.uniform(0.5, 1.5, like.shape)
        elif len(like.shape) >= 2:
            fan_in = max(1, int(np.prod(like.shape[:-1])))
            value = rng.normal(size=like.shape) * 1.5 / np.sqrt(fan_in)
        else:
            value = rng.normal(size=like.shape) * 0.5
        return jnp.asarray(value, jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """A float32 standard normal array, the same on every machine."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def tree(**shapes: Any) -> Any:
    """Random parameters from nested dicts of shapes."""

    def is_shape(s: Any) -> bool:
        return isinstance(s, tuple) and all(isinstance(n, int) for n in s)

    return randomise(
        jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=is_shape
        )
    )


def linen(
    name: str,
    module: Any,
    *inputs: Any,
    train: bool = False,
    dropout: bool = False,
    **known: Any,
) -> Net:
    """A specimen from a Linen module; `train` gives it a train-mode function too."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    params = randomise(shapes)

    def train_apply(params: Any, *inputs: Any) -> Any:
        *inputs, key = inputs
        rngs = {"dropout": key} if dropout else None
        return module.apply(
            params, *inputs, train=True, rngs=rngs, mutable=["batch_stats"]
        )

    if train:
        known["train_apply"] = train_apply
        known["train_inputs"] = (*inputs, jax.random.key(7))
    return Net(name, lambda p, *xs: module.apply(p, *xs), params, inputs, **known)


NETS: dict[str, Callable[[], Net]] = {}
"""Every specimen, by name, built once and when first asked for."""


def specimen(build: Callable[[], Net]) -> Callable[[], Net]:
    """Registers `build` under the name of the function."""
    cached = functools.cache(build)
    NETS[build.__name__] = cached
    return cached
