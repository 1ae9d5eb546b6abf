"""How many weights each leaf keeps: the same share, or Erdos-Renyi-kernel."""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

Shapes = Mapping[str, tuple[int, ...]]


def exact(density: float, n: int) -> int:
    """`density * n` to the nearest, halves upwards."""
    return math.floor(density * n + 0.5)


def uniform(shapes: Shapes, density: float) -> dict[str, int]:
    """The same share of every leaf.

    Args:
        shapes: by path.
        density: the share that stays.

    Returns:
        Counts by path, each within one of its share, that sum to the exact total.

    Example:
        >>> uniform({"a": (3, 3), "b": (3, 1)}, 0.5)
        {'a': 5, 'b': 1}
    """
    sizes = np.array([math.prod(s) for s in shapes.values()], float)
    return _allot(shapes, sizes * density, exact(density, int(sizes.sum())))


def erk(shapes: Shapes, density: float) -> dict[str, int]:
    """Erdos-Renyi-kernel: a leaf's density grows with the sum of its axes over its
    size.

    Leaves whose share would pass one are dense, and the rest share what is left.

    Args:
        shapes: by path.
        density: the share of all weights that stays.

    Returns:
        Counts by path, each within one of its share, that sum to the exact total.

    Reference:
        Evci et al., Rigging the Lottery, ICML 2020, section 3 (1); DiSparse, CVPR 2022.
    """
    sizes = np.array([math.prod(s) for s in shapes.values()], float)
    raw = np.array([sum(s) / max(math.prod(s), 1) for s in shapes.values()])
    total, dense = exact(density, int(sizes.sum())), np.zeros(len(sizes), bool)
    while True:
        open_ = ~dense
        weight = (raw * sizes)[open_].sum()
        scale = (total - sizes[dense].sum()) / weight if weight else 0.0
        over = open_ & (scale * raw > 1)
        if not over.any():
            break
        dense |= over & (raw == raw[over].max())
    wanted = np.where(dense, sizes, scale * raw * sizes)
    return _allot(shapes, wanted, total)


def _allot(
    shapes: Shapes, wanted: Float[np.ndarray, "_"], total: int
) -> dict[str, int]:
    """Whole numbers next to `wanted` that sum to `total`: by largest remainder."""
    floor = np.floor(wanted + 1e-9).astype(int)
    order = np.argsort(-(wanted - floor), kind="stable")
    floor[order[: max(total - int(floor.sum()), 0)]] += 1
    return dict(zip(shapes, floor.tolist(), strict=True))
