import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import tfds_scenes

from cutjax.data import from_tfds
from cutjax.data.base import SPLITS
from cutjax.data.digits import digits_scenes

FOUR = {"train": "train[:60%]", "calibration": "train[60%:80%]"}
FOUR |= {"validation": "train[80%:]", "test": "test"}


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    builder = tfds_scenes.DigitScenes(data_dir=folder, file_format="array_record")
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    return builder


def rows(split):
    return {x.tobytes() for x in split.x}


def test_reads_every_label_without_tensorflow(builder):
    data = from_tfds(builder)
    assert "tensorflow" not in sys.modules
    assert data.tasks["left"] == 10 and data.tasks["larger"] == 3
    assert data.tasks["attributes/odd"] == 2 and 10 < data.tasks["sum"] <= 19
    assert data.name == "digit_scenes" and "mean" not in data.tasks


def test_images_and_labels_are_those_written(builder):
    source = digits_scenes(sizes=tfds_scenes.SIZES)
    written = {
        np.round(255 * x).astype(np.uint8).tobytes(): int(label)
        for x, label in zip(source.test.x, source.test.y["left"], strict=True)
    }
    data = from_tfds(builder)
    assert len(data.test.x) == 40 and data.test.x.dtype == np.float32
    for x, label in zip(data.test.x, data.test.y["left"], strict=True):
        assert written[np.round(255 * x).astype(np.uint8).tobytes()] == label
    total = data.test.y["sum"] % 2
    np.testing.assert_array_equal(total, data.test.y["attributes/odd"])


def test_missing_splits_are_carved_from_train_and_disjoint(builder):
    data = from_tfds(builder, seed=1)
    parts = [rows(getattr(data, s)) for s in SPLITS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 160
    assert len(data.train.x) + len(data.calibration.x) + len(data.validation.x) == 120
    assert rows(from_tfds(builder, seed=1).train) == parts[0]
    assert rows(from_tfds(builder, seed=2).train) != parts[0]


def test_named_splits_labels_and_limit(builder):
    data = from_tfds(builder, splits=FOUR, labels=["attributes/odd"], limit=20)
    assert [len(getattr(data, s).x) for s in SPLITS] == [20, 20, 20, 20]
    assert data.tasks == {"attributes/odd": 2} and set(data.train.y) == set(data.tasks)


def test_overlapping_splits_are_refused(builder):
    with pytest.raises(ValueError, match="share examples"):
        from_tfds(builder, splits={**FOUR, "calibration": "train[50%:70%]"})
    with pytest.raises(ValueError, match="needs"):
        from_tfds(builder, splits={"train": "train"})


def test_unknown_features_are_refused(builder):
    with pytest.raises(ValueError, match="attributes/odd"):
        from_tfds(builder, labels=["mean"])
    with pytest.raises(ValueError, match="do not fit"):
        from_tfds(builder, image="picture")


def test_lost_rows_are_noticed(builder, monkeypatch):
    whole = type(builder).as_data_source

    def lossy(self, split):
        source = whole(self, split=split)
        return [source[i] for i in range(len(source) * 2 // 3)]

    monkeypatch.setattr(type(builder), "as_data_source", lossy)
    with pytest.raises(ValueError, match="announces 120 examples"):
        from_tfds(builder)


def test_tfrecord_files_say_what_to_install(builder, monkeypatch):
    import tensorflow_datasets as tfds

    formats = {tfds.core.file_adapters.FileFormat.TFRECORD}
    monkeypatch.setattr(
        type(builder.info), "available_file_formats", lambda self: formats
    )
    with pytest.raises(ImportError, match="pip install tensorflow-cpu"):
        from_tfds(builder)


def test_image_features_without_tensorflow_say_what_to_install(tmp_path):
    with pytest.raises(ImportError, match="pip install tensorflow-cpu"):
        from_tfds("needs_tensorflow", data_dir=tmp_path)
