"""Where arrays lie: meshes whose axes XLA may divide as it likes.

`jax.make_mesh` makes axes explicit: then every gather and product in a model would have
to say where its result lies. What runs here leaves that to the compiler.
"""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def automatic(sharding: Any) -> Any:
    """The same sharding over a mesh of automatic axes; a mesh is divided over all axes.

    Args:
        sharding: a mesh, or any sharding; what is over no mesh stays as it is.

    Example:
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> automatic(mesh).spec == PartitionSpec(('data',))
        True
    """
    if isinstance(sharding, Mesh):
        sharding = NamedSharding(sharding, PartitionSpec(sharding.axis_names))
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return sharding
    mesh = sharding.mesh
    kinds = (AxisType.Auto,) * len(mesh.axis_names)
    return NamedSharding(
        Mesh(mesh.devices, mesh.axis_names, axis_types=kinds), sharding.spec
    )


def divided(tree: Any, sharding: Any) -> Any:
    """Arrays over devices; numbers and random keys, which have no axis, as they are."""

    def put(a: Any) -> Any:
        return jax.device_put(a, sharding) if np.ndim(a) else a

    return jax.tree.map(put, tree)


def relaxed(tree: Any) -> Any:
    """Arrays over meshes of explicit axes as the same over automatic ones."""

    def leaf(value: Any) -> Any:
        if not isinstance(value, jax.Array) or isinstance(value, Tracer):
            return value
        mesh = getattr(value.sharding, "mesh", None)
        if mesh is None or AxisType.Explicit not in mesh.axis_types:
            return value
        return jax.device_put(value, automatic(value.sharding))

    return jax.tree.map(leaf, tree)


def is_spread(tree: Any) -> bool:
    """Whether some array lies on several devices."""
    leaves = (v for v in jax.tree.leaves(tree) if isinstance(v, jax.Array))
    return any(not isinstance(v, Tracer) and len(v.devices()) > 1 for v in leaves)
