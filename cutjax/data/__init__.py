"""Data sets as four disjoint splits with labels by task."""

from cutjax.data.arrays import from_arrays
from cutjax.data.base import Dataset, Split, batches, describe, take
from cutjax.data.digits import digits_scenes
from cutjax.data.tfds import from_tfds

__all__ = [
    "Dataset",
    "Split",
    "batches",
    "describe",
    "digits_scenes",
    "from_arrays",
    "from_tfds",
    "take",
]
