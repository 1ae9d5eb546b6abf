"""Where arrays lie, and how many bytes they take together."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


def unique_bytes(tree: Any) -> int:
    """Bytes that the arrays of a pytree take, where several lie in one place once.

    Args:
        tree: arrays; each device that this process sees counts what it holds, a
            replicated array once per device.

    Returns:
        The bytes of the distinct buffers, those of numpy arrays on the host included.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.ones(4)
        >>> unique_bytes({"a": x, "b": x}), unique_bytes({"a": x, "b": x + 0})
        (16, 32)
    """
    found = sorted(span for leaf in jax.tree.leaves(tree) for span in _spans(leaf))
    total, place, end = 0, None, 0
    for where, first, stop in found:
        end = end if where == place else 0
        total += max(stop - max(first, end), 0)
        place, end = where, max(stop, end)
    return total


def _spans(leaf: Any) -> Iterator[tuple[int, int, int]]:
    """Where an array lies: device (-1 the host), first and last address."""
    if not isinstance(leaf, jax.Array):
        value = np.asarray(leaf)
        start = value.__array_interface__["data"][0]
        yield -1, start, start + value.nbytes
        return
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    for shard in leaf.addressable_shards:
        if shard.data.nbytes:
            start = shard.data.unsafe_buffer_pointer()
            yield shard.device.id, start, start + shard.data.nbytes
