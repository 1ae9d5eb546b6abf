"""A candidate on disk: programs and weights, for a process that shares nothing."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from cutjax.bench.flops import UncountableError, count_flops
from cutjax.data.examples import inputs_in


class BenchError(RuntimeError):
    """A candidate could not be measured; the message names it and says why."""


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Where the files of a candidate are, and what is known without running it.

    Attributes:
        name: the candidate.
        job: what its worker reads first: paths and dtypes, per batch size.
        flops: batch size -> multiply-adds as two, or None if uncountable.
        params: elements of the params pytree.
        file_bytes: size of the saved weights.
    """

    name: str
    job: dict[str, Any]
    flops: dict[int, int | None]
    params: int
    file_bytes: int


def bundle(
    name: str,
    apply: Callable[..., Any],
    params: Any,
    x: Any,
    batch_sizes: Sequence[int],
    directory: Path,
) -> Bundle:
    """Exports `apply` at every batch size, with the weights as arguments.

    Args:
        name: the candidate.
        apply: `apply(params, x)`, or of a tuple `apply(params, *x)`; any pytree out.
        params: any pytree of arrays.
        x: one batch, leading axis the batch: arrays or `jax.ShapeDtypeStruct`.
        batch_sizes: examples per call.
        directory: an empty one, to be filled.

    Returns:
        What the worker and the report need.

    Raises:
        BenchError: the function cannot be exported.
    """
    try:
        weights, tree = jax.tree.flatten(params)
        weights = [jnp.asarray(leaf) for leaf in weights]
        programs, flops = {}, {}
        for size in batch_sizes:
            batch = jax.tree.map(lambda leaf, n=size: resize(leaf, n), x)
            restored = jax.tree.unflatten(tree, weights)
            flops[size] = _flops(apply, restored, batch)
            folder = directory / f"{size}"
            programs[size] = _save_program(apply, tree, weights, batch, folder)
        path = directory / "weights.npz"
        dtypes = _save(path, weights)
    except Exception as error:  # whatever tracing someone else's function may raise
        reason = f"{type(error).__name__}: {error}"
        raise BenchError(
            f"candidate {name!r} cannot be exported, and only an exported function "
            f"runs in a fresh process. jax.export.export(jax.jit(apply))(params, x) "
            f"must work on it. It failed with {reason}"
        ) from error
    job = {"weights": str(path), "dtypes": dtypes, "programs": programs}
    size = sum(leaf.size for leaf in weights)
    return Bundle(name, job, flops, size, path.stat().st_size)


def resize(leaf: Any, batch: int) -> Shaped[Array, "{batch} ..."]:
    """One input at another batch size: examples repeat; a mere shape gets noise.

    Args:
        leaf: an array or a `jax.ShapeDtypeStruct`, leading axis the batch.
        batch: examples wanted.

    Returns:
        An array. Integers made from a shape are zeros, which index anything.
    """
    if not leaf.shape:
        raise ValueError("the input has no leading batch axis: x.shape is ()")
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.asarray(leaf)[jnp.arange(batch) % leaf.shape[0]]
    shape = (batch, *leaf.shape[1:])
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros(shape, leaf.dtype)
    noise = np.random.default_rng(0).standard_normal(shape)
    return jnp.asarray(noise, leaf.dtype)


def _flops(apply: Callable[..., Any], params: Any, x: Any) -> int | None:
    try:
        return count_flops(apply, params, *inputs_in(x))
    except UncountableError:
        return None


def _save_program(
    apply: Callable[..., Any], tree: Any, weights: list[Any], x: Any, folder: Path
) -> dict[str, Any]:
    inputs, x_tree = jax.tree.flatten(x)

    def flat(weights: list[Any], inputs: list[Any]) -> list[Any]:
        # Lists only: an own pytree class would need registration to be serialised.
        params = jax.tree.unflatten(tree, weights)
        given = inputs_in(jax.tree.unflatten(x_tree, inputs))
        return jax.tree.leaves(apply(params, *given))

    shapes = [
        [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        for leaves in (weights, inputs)
    ]
    exported = jax.export.export(jax.jit(flat), platforms=["cpu"])(*shapes)
    folder.mkdir(parents=True)
    program = folder / "program.bin"
    _ = program.write_bytes(exported.serialize())
    dtypes = _save(folder / "x.npz", inputs)
    return {
        "program": str(program),
        "inputs": str(folder / "x.npz"),
        "dtypes": dtypes,
    }


def _save(path: Path, arrays: Sequence[Any]) -> list[str]:
    np.savez(path, *map(np.asarray, arrays))
    return [str(leaf.dtype) for leaf in arrays]
