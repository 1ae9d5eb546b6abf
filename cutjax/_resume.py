"""Keeping a training run on disk, and refusing to continue another one.

One Orbax checkpoint per finished epoch, `epoch_00003`; an older one is deleted only
when the newer one is complete, so an interruption costs one epoch at most. Leaves are
stored in a flat dictionary by their path: optax's named tuples and empty nodes come
back as they were. Orbax is imported where it is used: that second most runs save.
"""

import re
import zlib
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np

Json = dict[str, Any]


def fingerprint(state: Any, start: Any, data: Any, **settings: int) -> Json:
    """What a run must have in common with a checkpoint to continue it.

    Args:
        state: the loop's state, or its shapes.
        start: the parameters that the run started from.
        data: the training data, as a pytree.
        settings: plain numbers that decide the course of the run.

    Returns:
        A JSON value to be compared for equality.
    """
    shapes = {k: f"{v.dtype}{list(v.shape)}" for k, v in _flat(state).items()}
    return {"start": _crc(start), "data": _crc(data), **settings, "shapes": shapes}


def save(
    folder: str | PathLike[str], epoch: int, run: Json, state: Any, info: Json
) -> None:
    """Writes the run as it is after `epoch`, then deletes what it replaces."""
    from orbax.checkpoint import v1 as ocp

    root = Path(folder).absolute()
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"epoch_{epoch:05d}"
    ocp.save(
        str(path),
        _flat(state),
        custom_metadata={"run": run, "info": info},
        overwrite=True,
    )
    for old, other in _found(root):
        if old < epoch:
            ocp.delete(str(other))


def load(
    folder: str | PathLike[str], run: Json, state: Any
) -> tuple[int, Any, Json] | None:
    """The newest epoch in `folder`.

    Args:
        folder: where `save` wrote.
        run: fingerprint of the run that wants to continue.
        state: shapes of what is to be loaded.

    Returns:
        `(epoch, state, info)`, or None where nothing was saved yet.

    Raises:
        ValueError: what is there belongs to another run.
    """
    from orbax.checkpoint import v1 as ocp

    found = _found(Path(folder).absolute())
    if not found:
        return None
    epoch, path = max(found)
    # Compared first: a wrong target would flood stderr and name a leaf, not the reason.
    kept: Any = ocp.metadata(str(path)).custom_metadata or {}
    other = kept.get("run", {})
    if other != run:
        what = [k for k in run if other.get(k) != run[k]]
        raise ValueError(
            f"fit: the checkpoint {path} belongs to another run (different: "
            f"{', '.join(what)}); give another `checkpoint` directory, or delete "
            "this one to start anew"
        )
    flat = ocp.load(str(path), jax.tree.map(_shape, _flat(state)))
    leaves = [flat[name] for name in _flat(state)]
    return epoch, jax.tree.unflatten(jax.tree.structure(state), leaves), kept["info"]


def _found(root: Path) -> list[tuple[int, Path]]:
    # Orbax writes beside the final name and renames: a full match is complete.
    paths = root.glob("epoch_*") if root.is_dir() else ()
    matches = [(re.fullmatch(r"epoch_(\d+)", p.name), p) for p in paths]
    return [(int(m[1]), p) for m, p in matches if m]


def _flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(p, simple=True, separator="|"): leaf for p, leaf in leaves
    }


def _shape(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    # With the sharding of this run: the saved one may name devices that are not here.
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _crc(tree: Any) -> int:
    value = 0
    for name, leaf in _flat(tree).items():
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(np.asarray(leaf).tobytes(), value)
    return value
