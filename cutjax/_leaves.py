"""Leaves, keeps and notes of a model in the form that a checkpoint stores them."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool

from cutjax.errors import CheckpointError
from cutjax.graph_json import key_impl


def to_host(name: str, leaf: Any) -> np.ndarray:
    """A leaf as a numpy array; random keys as their bits.

    Raises:
        CheckpointError: it is no array, or not on this host.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct | Tracer):
        raise CheckpointError(
            f"small_params[{name!r}] is a {type(leaf).__name__}, which has no values; "
            "call save outside of jit, with arrays"
        )
    if not getattr(leaf, "is_fully_addressable", True) and not leaf.is_fully_replicated:
        raise CheckpointError(
            f"small_params[{name!r}] is spread over several hosts; gather it first: "
            "jax.experimental.multihost_utils.process_allgather(params, tiled=True)"
        )
    if key_impl(getattr(leaf, "dtype", "")) is not None:
        leaf = jax.random.key_data(leaf)
    value = np.asarray(leaf)
    if value.dtype.kind in "OSUMm":
        raise CheckpointError(
            f"small_params[{name!r}] is {value.dtype}; only arrays of numbers are kept"
        )
    # Orbax forgets a foreign byte order.
    return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder())


def to_device(value: np.ndarray, struct: jax.ShapeDtypeStruct) -> Any:
    """The leaf that `to_host` was given; numpy where JAX would lose bits (float64)."""
    impl = key_impl(struct.dtype)
    if impl is not None:
        return jax.random.wrap_key_data(jnp.asarray(value), impl=impl)
    out = jnp.asarray(value)
    return out if out.dtype == value.dtype else value


def host_struct(struct: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Shape and dtype of what `to_host` makes of a leaf of this shape and dtype."""
    if key_impl(struct.dtype) is None:
        return struct
    return jax.eval_shape(jax.random.key_data, struct)


def checksum(value: np.ndarray) -> int:
    """CRC-32 of the bytes of an array."""
    return zlib.crc32(np.ascontiguousarray(value).tobytes())


def pack(mask: Bool[np.ndarray, "n"]) -> list[Any]:
    """A mask as `[size, kept, hexadecimal bits]`.

    Example:
        >>> pack(np.array([True, True, False, True]))
        [4, 3, 'd0']
    """
    return [int(mask.size), int(mask.sum()), np.packbits(mask).tobytes().hex()]


def unpack(value: list[Any]) -> Bool[np.ndarray, "n"]:
    """The mask that `pack` wrote.

    Raises:
        ValueError: it is damaged.
    """
    size, kept, bits = value
    raw = np.frombuffer(bytes.fromhex(bits), np.uint8)
    mask = np.unpackbits(raw, count=size).astype(bool)
    if mask.size != size or int(mask.sum()) != kept:
        raise ValueError("a keep does not hold what it says")
    return mask


def plain(provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    """Provenance as JSON gives it back.

    Raises:
        CheckpointError: JSON does not hold it; names the entry.
    """
    out = {}
    for key, value in dict(provenance or {}).items():
        try:
            if not isinstance(key, str):
                raise TypeError(f"its key is a {type(key).__name__}, not a string")
            out[key] = json.loads(json.dumps(value, allow_nan=False, default=_number))
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"provenance[{key!r}] is not JSON: {error}; "
                "use strings, finite numbers, lists and dicts"
            ) from error
    return out


def _number(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return np.asarray(value).tolist()
    raise TypeError(f"it holds a {type(value).__name__}")
