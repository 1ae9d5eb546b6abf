"""Any TFDS image data set with integer labels, read without TensorFlow.

TFDS reads ArrayRecord files through `tfds.data_source` with NumPy alone. Data sets that
exist only as TFRecord files, or whose preparation calls TensorFlow, need it once:
`pip install tensorflow-cpu`, and prepare with `file_format="array_record"`.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from os import PathLike
from typing import Any

import numpy as np
from jaxtyping import Float

from cutjax.data.arrays import FRACTIONS, split_rows
from cutjax.data.base import SPLITS, Dataset, Split, check_dataset


def from_tfds(
    name_or_builder: Any,
    *,
    image: str = "image",
    labels: Sequence[str] | None = None,
    splits: Mapping[str, str] | None = None,
    data_dir: str | PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    fractions: Mapping[str, float] = FRACTIONS,
) -> Dataset:
    """Reads a TFDS data set as train, calibration, validation and test.

    Args:
        name_or_builder: a TFDS name (prepared if it is not yet) or a prepared builder.
        image: feature that holds the image; integers are scaled to 0 .. 1.
        labels: features to use as tasks, nested ones as `attributes/Smiling`; default:
            every `ClassLabel` and every integer or boolean scalar.
        splits: TFDS split of each of the four, such as `{"train": "train[:80%]", ...}`.
            Default: those of the same name as they are, and what is missing carved from
            `train`, disjoint, at random, by `seed`.
        data_dir: where TFDS keeps its files.
        limit: at most so many examples of each TFDS split.
        seed: decides the carving.
        fractions: shares of the four splits, in proportion, where they are carved.

    Returns:
        The data set; the class count of a plain integer label is its maximum plus one.

    Raises:
        ValueError: unknown features or splits, splits that overlap, images of several
            sizes, or files that hold another number of rows than announced.
        ImportError: the data set needs TensorFlow; the message says what to install.

    Example:
        `from_tfds("mnist")`, `from_tfds("celeb_a", labels=["attributes/Smiling",
        "attributes/Male"], limit=20_000)`.
    """
    builder = _builder(name_or_builder, data_dir)
    tasks = _tasks(builder.info.features, image, labels)
    sources = _plan(builder, splits, limit, seed, fractions)
    parts = {
        part: _read(builder, *sources[part], image=image, tasks=tuple(tasks))
        for part in SPLITS
    }
    top = {t: max(int(p.y[t].max()) for p in parts.values()) + 1 for t in tasks}
    classes = {task: n or max(2, top[task]) for task, n in tasks.items()}
    return check_dataset(parts, classes, builder.info.name)


def _builder(name_or_builder: Any, data_dir: str | PathLike[str] | None) -> Any:
    import tensorflow_datasets as tfds

    if not isinstance(name_or_builder, str):
        return name_or_builder
    try:
        builder = tfds.builder(
            name_or_builder, data_dir=data_dir, file_format="array_record"
        )
        builder.download_and_prepare()
    except ImportError as error:
        raise _needs_tensorflow(name_or_builder, error) from error
    return builder


def _needs_tensorflow(name: str, error: Exception) -> ImportError:
    return ImportError(
        f"from_tfds: {name!r} cannot be read without TensorFlow ({error}). Once, in an "
        "environment with `pip install tensorflow-cpu`, run `tfds.builder"
        f"({name!r}, file_format='array_record').download_and_prepare()`; after that "
        "from_tfds reads it without TensorFlow"
    )


def _tasks(features: Any, image: str, labels: Sequence[str] | None) -> dict[str, int]:
    """Classes by task, 0 where only the data can tell."""
    flat = dict(_flatten(features))
    usable = {path: _classes(f) for path, f in flat.items() if _is_label(f)}
    chosen = [p for p in usable if p != image] if labels is None else list(labels)
    wrong = [path for path in chosen if path not in usable]
    if image not in flat or wrong or not chosen:
        raise ValueError(
            f"from_tfds: image={image!r}, labels={labels} do not fit the features "
            f"{sorted(flat)}; as labels serve {sorted(usable)}"
        )
    return {path: usable[path] for path in chosen}


def _flatten(features: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, feature in features.items():
        if hasattr(feature, "items"):
            yield from _flatten(feature, f"{prefix}{key}/")
        else:
            yield prefix + key, feature


def _is_label(feature: Any) -> bool:
    kind = np.dtype(getattr(feature, "np_dtype", object)).kind
    return getattr(feature, "shape", None) == () and kind in "biu"


def _classes(feature: Any) -> int:
    if np.dtype(feature.np_dtype).kind == "b":
        return 2
    return getattr(feature, "num_classes", None) or 0


Rows = tuple[str, np.ndarray]


def _plan(
    builder: Any,
    splits: Mapping[str, str] | None,
    limit: int | None,
    seed: int,
    fractions: Mapping[str, float],
) -> dict[str, Rows]:
    """The TFDS split and the rows of it that make each of our four splits."""
    there = builder.info.splits
    if splits is not None:
        if set(splits) != set(SPLITS):
            raise ValueError(
                f"from_tfds: splits names {sorted(splits)}, needs {SPLITS}"
            )
        _check_disjoint(builder, splits)
        return {p: (s, _first(there[s].num_examples, limit)) for p, s in splits.items()}
    if "train" not in there:
        raise ValueError(
            f"from_tfds: {builder.info.name} has the splits {sorted(there)} and no "
            "train; say which to use with splits={'train': ..., 'test': ..., ...}"
        )
    given = {p: p for p in SPLITS if p in there and there[p].num_examples}
    carve = {p: fractions[p] for p in SPLITS if p == "train" or p not in given}
    total = sum(carve.values())
    rows = split_rows(
        _first(there["train"].num_examples, limit),
        {p: share / total for p, share in carve.items()},
        seed,
    )
    kept = {p: (p, _first(there[p].num_examples, limit)) for p in given}
    return {**kept, **{p: ("train", r) for p, r in rows.items()}}


def _first(n: int, limit: int | None) -> np.ndarray:
    return np.arange(n if limit is None else min(n, limit))


def _check_disjoint(builder: Any, splits: Mapping[str, str]) -> None:
    spans = [
        (str(f.filename), f.skip, f.skip + f.take, part)
        for part, spec in splits.items()
        for f in builder.info.splits[spec].file_instructions
    ]
    spans.sort()
    for (file, _, stop, a), (other, start, _, b) in pairwise(spans):
        if file == other and start < stop:
            raise ValueError(
                f"from_tfds: {a}={splits[a]!r} and {b}={splits[b]!r} share examples; "
                "splits must not overlap"
            )


def _read(
    builder: Any, spec: str, rows: np.ndarray, *, image: str, tasks: tuple[str, ...]
) -> Split:
    source = _source(builder, spec)
    announced = builder.info.splits[spec].num_examples
    # TFDS's parquet writer loses rows silently; a reader that trusts it would not know.
    if len(source) != announced:
        raise ValueError(
            f"from_tfds: {builder.info.name}[{spec}] announces {announced} examples "
            f"but its files hold {len(source)}; prepare it again as array_record"
        )
    examples = [source[int(row)] for row in rows]
    images = [_get(example, image) for example in examples]
    shapes = {np.shape(i) for i in images}
    if len(shapes) > 1:
        raise ValueError(
            f"from_tfds: images of {builder.info.name} have several shapes, such as "
            f"{sorted(shapes)[:3]}; resize them and use cutjax.data.from_arrays"
        )
    y = {t: np.array([_get(e, t) for e in examples]).astype(np.int32) for t in tasks}
    return Split(_scale(np.stack(images)), y)


def _source(builder: Any, spec: str) -> Any:
    try:
        return builder.as_data_source(split=spec)
    except (ImportError, NotImplementedError) as error:
        raise _needs_tensorflow(builder.info.name, error) from error


def _get(example: Mapping[str, Any], path: str) -> Any:
    for key in path.split("/"):
        example = example[key]
    return example


def _scale(images: np.ndarray) -> Float[np.ndarray, "n h w c"]:
    if images.ndim == 3:
        images = images[..., None]
    top = np.iinfo(images.dtype).max if images.dtype.kind in "iu" else 1
    return images.astype(np.float32) / np.float32(top)
