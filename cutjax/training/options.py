"""The numbers that decide the course of a run, checked together."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cutjax.data.base import Split, check_split
from cutjax.data.examples import shapes


class Options(NamedTuple):
    """The options of `cutjax.fit.fit`, by the names that they have there."""

    epochs: int
    batch_size: int
    seed: int = 0
    accumulate: int = 1
    dtype: Any = None
    ema: float | None = None
    patience: int | None = None
    scan: int = 1
    save_every: int | float | None = None
    log_every: int | None = None


def plain(options: Options) -> Options:
    """The same options in Python's own numbers.

    A step count of NumPy is no `int`, and JSON knows neither it nor its floats.
    """

    def of_python(value: Any) -> Any:
        return value.item() if isinstance(value, np.generic | jax.Array) else value

    return Options(*map(of_python, options))


def batch(
    size: int, data: Split, augment: Callable[[Any, Any], Any] | None = None
) -> Any:
    """The shapes of the inputs of a step.

    Args:
        size: examples per step.
        data: what to train on.
        augment: what is done to a batch first.

    Raises:
        ValueError: that gives something else than as many examples.
    """
    if size < 1:
        raise ValueError(f"fit: batch_size is {size}, expected 1 or more")
    x = shapes(data.x, size)
    if augment is None:
        return x
    made = jax.eval_shape(augment, jax.random.key(0), x)
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(made)}
    same = jax.tree.structure(made) == jax.tree.structure(x)
    if not same or sizes != {(size,)}:
        raise ValueError(
            f"fit: augment(key, x) made {made} of a batch of {size} examples, {x}; "
            "expected the same pytree, and as many in every array"
        )
    return made


def course(
    options: Options, names: tuple[str, ...], *, augmented: bool = False
) -> dict[str, Any]:
    """What a checkpoint must agree on: others may change between its halves."""
    dtype = None if options.dtype is None else jnp.dtype(options.dtype).name
    chosen = ("batch_size", "seed", "accumulate", "ema")
    plain = {name: getattr(options, name) for name in chosen}
    more = {"augmented": True} if augmented else {}
    return {**plain, "dtype": dtype, "updated": list(names), **more}


def check(options: Options, data: Split, needed: dict[str, Any]) -> int:
    """The steps of an epoch, after checking that the options fit.

    Args:
        options: what was asked for.
        data: what to train on.
        needed: the arguments `evaluate`, `checkpoint`, `metrics` of `fit`.

    Returns:
        Steps per epoch: whole updates only, `accumulate` steps each.

    Raises:
        ValueError: an option that does not fit the data or the others.
    """
    n = check_split(data, "fit: data")
    for name in ("epochs", "accumulate", "patience", "scan", "log_every"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"fit: {name} is {value}, expected 1 or more")
    if options.seed < 0:
        raise ValueError(f"fit: seed is {options.seed}, expected 0 or more")
    _check_sizes(options, n)
    _check_numbers(options)
    for name, other in (
        ("patience", "evaluate"),
        ("save_every", "checkpoint"),
        ("log_every", "metrics"),
    ):
        if getattr(options, name) is not None and needed[other] is None:
            raise ValueError(
                f"fit: {name} needs `{other}`; give fit({name}=..., {other}=...)"
            )
    per = options.batch_size * options.accumulate
    return n // per * options.accumulate


def _check_sizes(options: Options, n: int) -> None:
    size, parts = options.batch_size, options.accumulate
    if not 1 <= size <= n:
        raise ValueError(
            f"fit: batch_size {size} does not fit {n} examples; use 1 to {n}"
        )
    if size * parts > n:
        raise ValueError(
            f"fit: {parts} batches of {size} are {size * parts} examples per update, "
            f"but there are {n}; accumulate at most {n // size}"
        )


def _check_numbers(options: Options) -> None:
    ema, every, dtype = options.ema, options.save_every, options.dtype
    if ema is not None and not 0 < ema < 1:
        raise ValueError(
            f"fit: ema is {ema}, expected a decay between 0 and 1, such as 0.999"
        )
    if every is not None and not every > 0:
        raise ValueError(
            f"fit: save_every is {every}; give steps (an integer) or seconds (a float)"
        )
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"fit: dtype is {jnp.dtype(dtype).name}, expected a floating type such as "
            "jnp.bfloat16"
        )
