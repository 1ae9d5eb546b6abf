"""A TFDS builder of real digit scenes: an importable module, as TFDS requires."""

import numpy as np
import tensorflow_datasets as tfds

from cutjax.data.digits import digits_scenes

SIZES = {"train": 120, "calibration": 10, "validation": 10, "test": 40}


class DigitScenes(tfds.core.GeneratorBasedBuilder):
    """Two digits per scene, with labels of every kind that TFDS has for integers."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(12, 20, 1), dtype=np.uint8),
                    "left": tfds.features.ClassLabel(num_classes=10),
                    "larger": tfds.features.ClassLabel(
                        names=["left", "right", "equal"]
                    ),
                    "sum": tfds.features.Scalar(dtype=np.int64),
                    "attributes": {"odd": tfds.features.Scalar(dtype=np.bool_)},
                    "mean": tfds.features.Scalar(dtype=np.float32),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        data = digits_scenes(sizes=SIZES)
        return {
            "train": self._generate_examples(data.train),
            "test": self._generate_examples(data.test),
        }

    def _generate_examples(self, split):
        for i, x in enumerate(split.x):
            y = {task: int(labels[i]) for task, labels in split.y.items()}
            yield (
                i,
                {
                    "image": np.round(255 * x).astype(np.uint8),
                    "left": y["left"],
                    "larger": y["larger"],
                    "sum": y["left"] + y["right"],
                    "attributes": {"odd": bool(y["sum_parity"])},
                    "mean": float(x.mean()),
                },
            )


class NeedsTensorflow(tfds.core.GeneratorBasedBuilder):
    """An encoded image feature: writing it takes TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(12, 20, 1)),
            "left": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"image": np.zeros((12, 20, 1), np.uint8), "left": 0}
