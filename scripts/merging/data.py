"""Images of ten classes that two networks divide: MNIST, CIFAR-10 as JPEG."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from rivalry import images
from studies import real

from cutjax.data import Split

NAMES = ("mnist", "cifar")
CALIBRATION = 1000


class Halves(NamedTuple):
    """Three disjoint splits with a task `label`; nothing is chosen, so no fourth."""

    name: str
    train: Split
    calibration: Split
    test: Split


def load(name: str, cache: Path) -> Halves:
    """The images, split once.

    Raises:
        real.Absent, images.Absent: their files are not there.
    """
    if name == "mnist":
        found = real.load("morpho", cache)
        parts = (found.train, found.calibration, found.test)
        return Halves(name, *(Split(p.x, {"label": p.y["digit"]}) for p in parts))
    found = images.load(cache)
    first, last = images.VALIDATION, images.VALIDATION + CALIBRATION
    given, seen = found.order[first:last], found.order[last:]
    x, y = images.standardised(found.train[seen]), found.train_y[seen]
    doubled = np.concatenate([x, x[:, :, ::-1]]), np.concatenate([y, y])  # mirrored
    calibration = images.standardised(found.train[given]), found.train_y[given]
    test = tuple(part[::2] for part in images.test(found))
    parts = (doubled, calibration, test)
    return Halves(name, *(Split(x, {"label": y}) for x, y in parts))
