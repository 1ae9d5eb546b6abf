"""CIFAR-10 as JPEG images: decoded once, split once, standardised when asked for."""

import io
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rivalry.protocol import BATCH, CALIBRATION, MEAN, SEEDS, SHARED, STD, VALIDATION

ARCHIVE = SHARED / "cifar10_jpeg" / "cifar10_jpeg.tar.xz"


class Absent(Exception):
    """The files are not on this machine."""


class Images(NamedTuple):
    """All images as uint8 and labels, of both halves; `order` shuffles `train`."""

    train: np.ndarray
    train_y: np.ndarray
    test: np.ndarray
    test_y: np.ndarray
    order: np.ndarray


Part = tuple[np.ndarray, np.ndarray]


def load(cache: Path) -> Images:
    """Reads the images, decoding them the first time.

    Raises:
        Absent: says where they were looked for.
    """
    kept = cache / "cifar10_jpeg.npz"
    if not kept.exists():
        if not ARCHIVE.exists():
            raise Absent(f"left out: no file {ARCHIVE}")
        cache.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part.npz")
        np.savez(part, **_decoded(ARCHIVE))
        part.rename(kept)
    with np.load(kept) as file:
        found = {name: file[name] for name in file.files}
    return Images(**found, order=np.random.default_rng(0).permutation(50_000))


def _decoded(archive: Path) -> dict[str, np.ndarray]:
    from PIL import Image  # comes with matplotlib

    found: dict[str, dict[str, np.ndarray]] = {"train": {}, "test": {}}
    with tarfile.open(archive, "r:xz") as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            data = tar.extractfile(member)
            if data is not None and member.name.endswith(".jpg"):
                image = Image.open(io.BytesIO(data.read())).convert("RGB")
                found[member.name.split("/")[0]][member.name] = np.asarray(image)
    out = {}
    for half, images in found.items():
        names = sorted(images)
        folders = [name.split("/")[1] for name in names]
        classes = sorted(set(folders))  # alphabetical, as in CIFAR-10 itself
        out[half] = np.stack([images[name] for name in names])
        out[f"{half}_y"] = np.array([classes.index(f) for f in folders], np.int32)
    return out


def standardised(images: np.ndarray) -> np.ndarray:
    """As the published weights want them, `[n, 32, 32, 3]` float32."""
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    return ((images / np.float32(255) - mean) / std).astype(np.float32)


def test(data: Images) -> Part:
    """All test images."""
    return standardised(data.test), data.test_y


def validation(data: Images) -> Part:
    """Training images to choose by; nothing is fitted on them."""
    return _rows(data, data.order[:VALIDATION])


def calibration(data: Images, seed: int) -> Part:
    """Training images to score and to refit on; each seed has its own."""
    start = VALIDATION + SEEDS.index(seed) * CALIBRATION
    return _rows(data, data.order[start : start + CALIBRATION])


def tuning(data: Images, seed: int, steps: int) -> Part:
    """Training images to fine-tune on, each seen once, in their order."""
    pool = data.order[VALIDATION + len(SEEDS) * CALIBRATION :]
    rows = np.random.default_rng([11, seed]).permutation(pool)
    return _rows(data, rows[: steps * BATCH])


def _rows(data: Images, rows: np.ndarray) -> Part:
    return standardised(data.train[rows]), data.train_y[rows]
