import time

import numpy as np
import pytest

from cutjax.data import Split, batches, describe, digits_scenes, from_arrays
from cutjax.data.base import SPLITS, check_dataset
from cutjax.data.digits import SIZES, digit_pools

SMALL = {"train": 600, "calibration": 100, "validation": 100, "test": 100}


@pytest.fixture(scope="module")
def scenes():
    return digits_scenes()


def test_digits_of_different_splits_never_mix():
    pools = digit_pools()
    rows = np.concatenate(list(pools.values()))
    assert len(rows) == len(set(rows.tolist())) == 1797
    assert min(map(len, pools.values())) > 150


def test_every_split_has_every_class_in_proportion():
    from sklearn.datasets import load_digits

    target = load_digits().target
    for rows in digit_pools().values():
        shares = np.bincount(target[rows], minlength=10) / len(rows)
        assert np.abs(shares - np.bincount(target) / 1797).max() < 0.01


def test_scenes_show_the_digits_that_their_labels_name():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    rows = digit_pools()["train"]
    bank = bunch.images[rows].reshape(len(rows), 64)
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    data = digits_scenes(sizes=SMALL)
    for task, half in (("left", slice(0, 10)), ("right", slice(10, 20))):
        views = data.train.x[:100, :, half, 0]
        patches = np.lib.stride_tricks.sliding_window_view(views, (8, 8), (1, 2))
        match = patches.reshape(100, -1, 64) @ bank.T
        match /= np.linalg.norm(patches.reshape(100, -1, 64), axis=-1)[..., None]
        found = bunch.target[rows][match.max(1).argmax(1)]
        assert (found == data.train.y[task][:100]).mean() > 0.97


def test_derived_labels_follow_from_the_digits(scenes):
    for name in SPLITS:
        x, y = getattr(scenes, name)
        assert len(x) == SIZES[name] and x.dtype == np.float32
        assert x.min() == 0 and x.max() == 1
        sign = np.sign(y["left"] - y["right"])
        np.testing.assert_array_equal(y["larger"], np.array([2, 0, 1])[sign])
        np.testing.assert_array_equal(y["sum_parity"], (y["left"] + y["right"]) % 2)


def test_equal_digits_are_oversampled(scenes):
    shares = np.bincount(scenes.train.y["larger"]) / len(scenes.train.x)
    assert abs(shares[2] - 0.2) < 0.02 and abs(shares[0] - shares[1]) < 0.03


def test_scenes_repeat_by_seed_and_are_fast():
    began = time.perf_counter()
    a, b, c = digits_scenes(3, SMALL), digits_scenes(3, SMALL), digits_scenes(4, SMALL)
    assert time.perf_counter() - began < 3
    np.testing.assert_array_equal(a.test.x, b.test.x)
    assert (a.test.x != c.test.x).any()


def test_digits_scenes_refuses_what_it_cannot_make():
    with pytest.raises(ValueError, match="no split"):
        digits_scenes(sizes={"tets": 3})
    with pytest.raises(ValueError, match="or more"):
        digits_scenes(sizes={"test": 0})


def test_batches_in_order_and_shuffled():
    split = Split(np.arange(7.0).reshape(7, 1, 1, 1), {"t": np.arange(7)})
    ordered = list(batches(split, 3))
    assert [len(x) for x, _ in ordered] == [3, 3, 1]
    np.testing.assert_array_equal(
        np.concatenate([y["t"] for _, y in ordered]), range(7)
    )
    for x, y in batches(split, 3, seed=1):
        np.testing.assert_array_equal(x.ravel(), y["t"])
    first = [y["t"].tolist() for _, y in batches(split, 3, seed=1)]
    assert first == [y["t"].tolist() for _, y in batches(split, 3, seed=1)]
    assert first != [y["t"].tolist() for _, y in batches(split, 3, seed=2)]
    assert sorted(row for rows in first for row in rows) == list(range(7))
    assert [len(x) for x, _ in batches(split, 3, drop_last=True)] == [3, 3]


@pytest.mark.parametrize(
    ("split", "size", "reason"),
    [
        (Split(np.zeros((0, 1, 1, 1)), {"t": np.zeros(0)}), 2, "is empty"),
        (Split(np.zeros((3, 1, 1, 1)), {}), 2, "no labels"),
        (Split(np.zeros((3, 1, 1, 1)), {"t": np.zeros(2)}), 2, "other lengths"),
        (Split(np.zeros((3, 1, 1, 1)), {"t": np.zeros(3)}), 0, "at least 1"),
        (Split(np.zeros((3, 1, 1, 1)), {"t": np.zeros(3)}), 4, "leaves nothing"),
    ],
)
def test_batches_refuses_at_the_call(split, size, reason):
    with pytest.raises(ValueError, match=reason):
        batches(split, size, drop_last=True)


def test_labels_outside_their_classes_are_refused():
    split = Split(np.zeros((3, 1, 1, 1), np.float32), {"t": np.array([0, 1, 5])})
    with pytest.raises(ValueError, match="from 0 to 5"):
        check_dataset(dict.fromkeys(SPLITS, split), {"t": 5}, "toy")


def test_from_arrays_never_divides_a_group():
    photo = np.repeat(np.arange(60), 5)
    x = photo.astype(np.float32).reshape(-1, 1, 1, 1) * np.ones(
        (1, 2, 2, 1), np.float32
    )
    data = from_arrays(
        x, {"t": photo % 3}, groups=[f"photo {p}" for p in photo], seed=1
    )
    owners = [set(getattr(data, s).x[:, 0, 0, 0].tolist()) for s in SPLITS]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 60
    assert [len(getattr(data, s).x) for s in SPLITS] == [210, 15, 30, 45]
    other = from_arrays(x, {"t": photo % 3}, groups=photo, seed=2)
    assert set(other.test.x[:, 0, 0, 0].tolist()) != owners[3]


def test_from_arrays_by_row_would_divide_groups():
    """The saboteur of the test above: by row, photos do end up in two splits."""
    photo = np.repeat(np.arange(60), 5)
    x = photo.astype(np.float32).reshape(-1, 1, 1, 1)
    data = from_arrays(x, {"t": photo % 3})
    assert set(data.train.x.ravel()) & set(data.test.x.ravel())


def test_from_arrays_refuses_what_does_not_fit():
    x, y = np.zeros((10, 1, 1, 1), np.float32), {"t": np.arange(10) % 2}
    with pytest.raises(ValueError, match="one per row"):
        from_arrays(x, y, groups=np.arange(9))
    with pytest.raises(ValueError, match="sum to one"):
        from_arrays(x, y, fractions={"train": 0.5, "test": 0.2})
    with pytest.raises(ValueError, match="is empty"):
        from_arrays(x[:2], {"t": np.arange(2)})


def test_describe_names_everything(scenes):
    text = describe(scenes)
    for part in ("digits_scenes", "12x20x1", "train 12,000", "larger (3)"):
        assert part in text
