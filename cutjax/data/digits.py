"""The bundled default: scenes of two real handwritten digits, four tasks, no network.

scikit-learn carries 1,797 digits of 8 x 8 pixels. They are split once, by class, and
only then composed into scenes, so that no digit seen in training ever appears in a test
scene. The tasks share features on purpose: `larger` and `sum_parity` need what `left`
and `right` need, and a compact model for one of them alone can be much smaller.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from cutjax.data.base import SPLITS, Dataset, Split, check_dataset

TASKS = {"left": 10, "right": 10, "larger": 3, "sum_parity": 2}
LARGER = ("left", "right", "equal")
SIZES = {"train": 12_000, "calibration": 1_000, "validation": 2_000, "test": 2_000}

_DIGIT_SHARES = {"train": 0.64, "calibration": 0.10, "validation": 0.13, "test": 0.13}
_DIGIT_SEED = 1797  # fixed: which digits are test digits must not depend on the user
_EQUAL = 0.2  # share of scenes with equal digits; by chance it would be 0.1
_HEIGHT, _WIDTH, _SIDE = 12, 20, 8


def digits_scenes(
    seed: int = 0, sizes: Mapping[str, int] | None = None, *, equal: float = _EQUAL
) -> Dataset:
    """Scenes of two digits with the tasks `left`, `right`, `larger` and `sum_parity`.

    `larger` asks which digit is the greater one (0 left, 1 right, 2 equal) and
    `sum_parity` whether their sum is odd. Images are `[12, 20, 1]` in 0 .. 1.

    Args:
        seed: decides the scenes; the split of the digits is always the same.
        sizes: scenes per split, the default of `SIZES` where one is not named.
        equal: share of scenes whose two digits are equal.

    Returns:
        A data set whose four splits are built from disjoint digits.

    Raises:
        ValueError: an unknown split in `sizes`, or a size below 1.

    Example:
        >>> data = digits_scenes(sizes={"train": 100})
        >>> data.train.x.shape, data.test.x.shape, data.tasks["larger"]
        ((100, 12, 20, 1), (2000, 12, 20, 1), 3)
    """
    unknown = set(sizes or {}) - set(SPLITS)
    if unknown:
        raise ValueError(
            f"digits_scenes: no split {sorted(unknown)}; there are {SPLITS}"
        )
    sizes = {**SIZES, **(sizes or {})}
    if min(sizes.values()) < 1:
        raise ValueError(
            f"digits_scenes: every split needs a scene or more, got {sizes}"
        )
    pools = digit_pools()
    images, labels = _digits()
    parts = {}
    for i, name in enumerate(SPLITS):
        rng = np.random.default_rng([seed, i])
        rows = _pairs(rng, labels[pools[name]], sizes[name], equal)
        chosen = pools[name][rows]
        parts[name] = Split(_compose(rng, images[chosen]), _answers(labels[chosen]))
    return check_dataset(parts, TASKS, "digits_scenes")


def digit_pools() -> dict[str, Int[np.ndarray, " m"]]:
    """Which of the 1,797 digits belong to which split: disjoint, by class, fixed."""
    _, labels = _digits()
    rng = np.random.default_rng(_DIGIT_SEED)
    pools: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    edges = np.cumsum([_DIGIT_SHARES[name] for name in SPLITS])[:-1]
    for digit in range(10):
        rows = rng.permutation(np.flatnonzero(labels == digit))
        cuts = np.round(edges * len(rows)).astype(int)
        for name, part in zip(SPLITS, np.split(rows, cuts), strict=True):
            pools[name].append(part)
    return {name: np.concatenate(parts) for name, parts in pools.items()}


def _digits() -> tuple[Float[np.ndarray, "m 8 8"], Int[np.ndarray, " m"]]:
    from sklearn.datasets import load_digits  # here: a second that others save

    pixels, target = load_digits(return_X_y=True)
    images = np.asarray(pixels, np.float32).reshape(-1, _SIDE, _SIDE) / 16
    return images, np.asarray(target, np.int32)


def _pairs(
    rng: np.random.Generator, labels: np.ndarray, n: int, equal: float
) -> Int[np.ndarray, "n 2"]:
    """Rows of the two digits of each scene, a share `equal` of them of one class.

    Classes are drawn first and digits afterwards, so that classes are balanced.
    """
    left = rng.integers(0, 10, n)
    other = (left + rng.integers(1, 10, n)) % 10
    classes = np.stack([left, np.where(rng.random(n) < equal, left, other)], 1)
    order = np.argsort(labels, kind="stable")
    count = np.bincount(labels, minlength=10)
    first = np.cumsum(count) - count
    within = (rng.random((n, 2)) * count[classes]).astype(int)
    return order[first[classes] + within]


def _compose(
    rng: np.random.Generator, digits: Float[np.ndarray, "n 2 8 8"]
) -> Float[np.ndarray, "n h w 1"]:
    """Draws each pair on a canvas: own place, own contrast, a little sensor noise."""
    n = len(digits)
    half = _WIDTH // 2
    top = rng.integers(0, _HEIGHT - _SIDE + 1, (n, 2))
    start = rng.integers(0, half - _SIDE + 1, (n, 2)) + np.array([0, half])
    contrast = rng.uniform(0.6, 1.0, (n, 2, 1, 1)).astype(np.float32)
    canvas = rng.normal(0, 0.05, (n, _HEIGHT, _WIDTH)).astype(np.float32)
    scene = np.arange(n)[:, None, None, None]
    down = top[:, :, None, None] + np.arange(_SIDE)[:, None]
    across = start[:, :, None, None] + np.arange(_SIDE)
    canvas[scene, down, across] += contrast * digits
    return np.clip(canvas, 0, 1)[..., None]


def _answers(pair: Int[np.ndarray, "n 2"]) -> dict[str, np.ndarray]:
    left, right = pair[:, 0], pair[:, 1]
    larger = np.where(left > right, 0, np.where(left < right, 1, 2)).astype(np.int32)
    parity = ((left + right) % 2).astype(np.int32)
    return {"left": left, "right": right, "larger": larger, "sum_parity": parity}
