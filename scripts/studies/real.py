"""Real data from ../shared/data: photos of SET cards, MNIST digits with their shape.

Pictures are decoded once and kept beside the results as uint8. Splits are made once, by
the rule that the data's README gives, and do not depend on any seed.
"""

import csv
import gzip
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from cutjax.data import Dataset, Split, digits_scenes, from_arrays, take
from cutjax.data.base import SPLITS, check_dataset

NAMES = ("set_cards", "morpho", "digits")
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FRACTIONS = {"train": 0.7, "calibration": 0.1, "validation": 0.08, "test": 0.12}
CARDS = {
    "number": ("1", "2", "3"),
    "color": ("red", "green", "purple"),
    "shading": ("empty", "solid", "striped"),
    "shape": ("diamond", "oval", "squiggle"),
}
HEIGHT, WIDTH = 64, 40
NUMBERS = ("thickness", "slant", "width")
ROWS = {
    "train": slice(0, 6000),
    "calibration": slice(6000, 7000),
    "validation": slice(7000, 8000),
    "test": slice(8000, 10000),
}


class Absent(Exception):
    """The files of a data set are not on this machine."""


def load(name: str, cache: Path) -> Dataset:
    """A data set of the study: `set_cards`, `morpho` or `digits`.

    Raises:
        Absent: its files are not there; says where they were looked for.
    """
    if name == "digits":
        return digits_scenes()
    folder = SHARED / {"set_cards": "set_cards", "morpho": "mnist"}[name]
    if not folder.is_dir():
        raise Absent(f"{name} is left out: no folder {folder}")
    return set_cards(folder, cache) if name == "set_cards" else morpho(folder)


def set_cards(folder: Path, cache: Path) -> Dataset:
    """Photos of cards, `[64, 40, 3]`, four tasks of three classes, split by photo."""
    with open(folder / "labels.csv", newline="") as file:
        table = list(csv.DictReader(file))
    kept = cache / f"set_cards_{HEIGHT}x{WIDTH}.npz"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        made = decoded(folder / "set_cards.tar.xz", [row["file"] for row in table])
        part = kept.with_suffix(".part.npz")
        np.savez_compressed(part, x=made)
        part.rename(kept)
    x = np.load(kept)["x"].astype(np.float32) / 255
    y = {
        task: np.array([values.index(row[task]) for row in table], np.int32)
        for task, values in CARDS.items()
    }
    photos = [row["photo"] for row in table]
    return from_arrays(x, y, groups=photos, fractions=FRACTIONS, name="set_cards")


def decoded(archive: Path, names: list[str]) -> UInt8[np.ndarray, "n h w 3"]:
    """The JPEGs of an archive in the order of `names`, shrunk by averaging areas."""
    from PIL import Image  # comes with matplotlib

    found = {}
    with tarfile.open(archive, "r:xz") as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            data = tar.extractfile(member)
            if data is not None:
                image = Image.open(io.BytesIO(data.read())).convert("RGB")
                small = image.resize((WIDTH, HEIGHT), Image.Resampling.BOX)
                found[member.name] = np.asarray(small)
    return np.stack([found[name] for name in names])


def morpho(folder: Path, numbers: Sequence[str] = NUMBERS) -> Dataset:
    """Digits with their class and measures of their shape, split by index.

    The measures are standardised by their mean and spread over the training rows.
    """
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28, 1)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        digits = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int32)
    with open(folder / "t10k-morpho.csv", newline="") as file:
        table = list(csv.DictReader(file))
    measures = {t: np.array([float(row[t]) for row in table]) for t in numbers}
    x: Float[np.ndarray, "n 28 28 1"] = pixels.astype(np.float32) / 255
    whole = Split(x, {"digit": digits, **_standardised(measures)})
    parts = {s: take(whole, np.arange(len(x))[ROWS[s]]) for s in SPLITS}
    return check_dataset(parts, {"digit": 10, **dict.fromkeys(numbers, 0)}, "morpho")


def _standardised(measures: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    out = {}
    for task, values in measures.items():
        train = values[ROWS["train"]]
        out[task] = ((values - train.mean()) / train.std()).astype(np.float32)
    return out
