"""Parameters on one scale, and sums of them over networks.

Each is divided by its root mean square: running variances, a hundred times as large as
kernels, would otherwise decide alone.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from cutjax.graph import Graph
from cutjax.merge.permute import Permutation, reordered


def normalised(params: Mapping[str, Any]) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Parameters on the host, each divided by its root mean square."""
    return {path: _unit(leaf) for path, leaf in params.items() if _is_number(leaf)}


def _is_number(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.number)


def _unit(leaf: Any) -> Shaped[np.ndarray, "..."]:
    value = np.asarray(leaf)
    if value.dtype.kind != "c":
        value = value.astype(np.float32)
    scale = np.sqrt(np.mean(np.abs(value) ** 2)) if value.size else 0.0
    return value / scale if scale > 0 else value


def added(
    graph: Graph,
    networks: Mapping[str, Mapping[str, Any]],
    orders: Mapping[str, Permutation],
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The sum of networks, each in an order of its own, where their shapes agree.

    Args:
        graph: of all.
        networks: normalised parameters, by path.
        orders: of each network's channels.
    """
    out = {}
    for path, axes in graph.axes.items():
        leaves = {name: net[path] for name, net in networks.items() if path in net}
        if len({leaf.shape for leaf in leaves.values()}) == 1:
            out[path] = sum(
                reordered(leaf, axes, orders[name]) for name, leaf in leaves.items()
            )
    return out
