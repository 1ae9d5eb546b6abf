"""Where the arrays of a training run lie: on one device, or on a mesh of several."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cutjax.placed import automatic


class Layout(NamedTuple):
    """How a batch is divided, and how everything else is repeated.

    Attributes:
        batch: of examples, along their first axis.
        whole: of parameters, optimiser state and data.
    """

    batch: NamedSharding
    whole: NamedSharding


def layout(sharding: Any, batch_size: int) -> Layout | None:
    """The layout that `fit(..., sharding=...)` asks for.

    Args:
        sharding: a mesh, over all of whose axes a batch is divided; a `NamedSharding`
            whose first entry names the axes; None for one device.
        batch_size: examples per step.

    Returns:
        The layout, None for one device.

    Raises:
        ValueError: another kind of sharding, or a batch that does not divide.
    """
    if sharding is None:
        return None
    sharding = automatic(sharding)
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        raise ValueError(
            f"fit: sharding is a {type(sharding).__name__}; give a mesh, or "
            'NamedSharding(mesh, PartitionSpec("data")) to divide batches over an axis'
        )
    mesh = sharding.mesh
    batch = NamedSharding(mesh, PartitionSpec(*sharding.spec[:1]))
    if not _fits(batch, batch_size):
        raise ValueError(
            f"fit: a batch of {batch_size} does not divide evenly over {batch.spec} of "
            f"the mesh {dict(mesh.shape)}; use a multiple of the devices along it"
        )
    return Layout(batch, NamedSharding(mesh, PartitionSpec()))


def _fits(batch: NamedSharding, size: int) -> bool:
    try:
        _ = batch.shard_shape((size,))
    except ValueError:
        return False
    return True


def untied(tree: Any, like: Any) -> Any:
    """Restored arrays, as free of a device as those of a new run.

    Orbax ties arrays to a device. Whoever trains these on beside new, free ones (the
    optimiser's) would have the step compiled twice: its results are all tied.

    Args:
        tree: restored arrays.
        like: the same of a new run.

    Returns:
        The same values.
    """
    return jax.tree.map(
        lambda leaf, new: leaf if new.committed else _freed(leaf), tree, like
    )


def _freed(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        bits = jnp.asarray(np.asarray(jax.random.key_data(leaf)))
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
    return jnp.asarray(np.asarray(leaf))
