"""What a published model is, and the dictionary of all of them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Apply = Callable[..., Any]
Kept = Callable[[str, int], np.ndarray]
"""`kept(path, axis)`: the positions along that axis which a cut leaves."""


@dataclass(frozen=True)
class Narrow:
    """The same published class configured narrower: the oracle for statistics.

    `build()` gives its function and the shapes of its parameters. What a class derives
    from its width without any parameter (a table of sines, a factor sqrt(width)) a cut
    leaves as it was: within `constants(kept)` the narrow class makes the constants of
    the full one, or `adapt(params)` moves a factor into its parameters. `groups(width)`
    is how many groups its GroupNorms have, where no field of its configuration says so.
    """

    build: Callable[[], tuple[Apply, Any]]
    constants: Callable[[Kept], AbstractContextManager] = lambda kept: nullcontext()
    adapt: Callable[[Any], Any] = lambda params: params
    groups: Callable[[int], int] | None = None


@dataclass(frozen=True)
class Model:
    """A model that nobody here wrote, as a function of its parameters.

    `apply(params, *inputs)` is deterministic and answers an array or a dict of arrays.
    """

    name: str
    package: str
    apply: Apply
    params: Any
    inputs: tuple[Any, ...]
    narrow: Narrow | None = None


Built = tuple[Apply, Any, tuple[Any, ...], Narrow]


def halved(
    made: Callable[[int], tuple[Apply, Any]], inputs: tuple[Any, ...], **known: Any
) -> Built:
    """What a builder returns: the full model, and the one of half the widths.

    Args:
        made: from a divisor (1 full, 2 narrow) to the function and its shapes.
        inputs: of one batch.
        **known: fields of `Narrow`.
    """
    apply, shapes = made(1)
    return apply, randomise(shapes), inputs, Narrow(lambda: made(2), **known)


@dataclass(frozen=True)
class Entry:
    """How to build a model; its package is imported only then."""

    name: str
    package: str
    build: Callable[[], Built]

    def __call__(self) -> Model:
        return Model(self.name, self.package, *self.build())


ENTRIES: dict[str, Entry] = {}
"""Every model, by package and name, in the order of the table."""


def published(name: str, package: str) -> Callable[[Callable], Callable]:
    """Registers a function that returns what `halved` returns."""

    def register(build: Callable[[], Built]) -> Callable:
        key = f"{package}/{name}"
        if key in ENTRIES:
            raise ValueError(f"two models are called {key!r}")
        ENTRIES[key] = Entry(name, package, build)
        return build

    return register


def path_of(path: Any) -> str:
    """`params/Dense_0/kernel` of a tree path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def randomise(shapes: Any) -> Any:
    """Fills every leaf, statistics and biases included, so that a slip shows.

    Scales and variances lie in 0.5..1.5, biases are not zero; a value depends on the
    path and the shape only.
    """

    def leaf(path: Any, like: Any) -> jax.Array:
        name = path_of(path)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if not jnp.issubdtype(like.dtype, jnp.floating):
            value = np.zeros(like.shape)
        elif _is_scale(name, like.shape):
            value = rng.uniform(0.5, 1.5, like.shape)
        elif len(like.shape) >= 2:
            fan_in = max(1, int(np.prod(like.shape[:-1])))
            value = rng.normal(size=like.shape) * 1.5 / np.sqrt(min(fan_in, 64))
        else:
            value = rng.normal(size=like.shape) * 0.5
        return jnp.asarray(value, like.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def _is_scale(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a leaf multiplies, or is a variance, and should stay away from zero."""
    last = name.lower().split("/")[-2:]
    if {"scale", "var", "gamma", "var_ema"} & set(last):
        return True
    norm = "norm" in name.lower() or "ln_" in name.lower()
    return norm and name.endswith("weight") and len(shape) == 1


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """A float32 standard normal array, the same on every machine."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def tokens(*shape: int, vocabulary: int = 33, seed: int = 0) -> jax.Array:
    """Token numbers from 3 up (below live the padding and the end of a text)."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(3, vocabulary, shape), jnp.int32)
