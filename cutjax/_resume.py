"""Keeping a training run on disk, and refusing to continue another one.

An Orbax checkpoint per save, `step_000000120`, named by the steps that are done. Orbax
writes beside that name and renames, so a name is complete; an older checkpoint goes
only when a newer one is there, and the last two stay: should the newest be damaged all
the same (a disk, a crash of the machine), its checksum tells, and the run goes on from
the one before. Leaves are stored in a flat dictionary by their path: optax's named
tuples and empty nodes come back as they were. Orbax is imported where it is used: that
second most runs save.
"""

import gc
import json
import logging
import os
import re
import shutil
import zlib
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cutjax.errors import CheckpointError, warn

Json = dict[str, Any]

KEPT = 2


def fingerprint(state: Any, start: Any, data: Any, **settings: Any) -> Json:
    """What a run must have in common with a checkpoint to continue it.

    Args:
        state: the loop's state, or its shapes.
        start: the parameters that the run started from.
        data: the training data, as a pytree.
        settings: values of JSON that decide the course of the run.

    Returns:
        A JSON value to be compared for equality.
    """
    shapes = {k: f"{v.dtype}{list(v.shape)}" for k, v in _flat(state).items()}
    plain = json.loads(json.dumps(settings))  # as it is read again: tuples are lists
    return {"start": _crc(start), "data": _crc(data), **plain, "shapes": shapes}


def check_folder(folder: str | PathLike[str]) -> None:
    """Check, before any step is made, that a run can be kept in a folder.

    Raises:
        CheckpointError: it cannot.
    """
    root = Path(folder).absolute()
    there = next(path for path in (root, *root.parents) if os.path.exists(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written to" if there.is_dir() else "is a file"
        raise CheckpointError(
            f"fit: no checkpoint can be kept in {folder}: {there} {why}; give another "
            "`checkpoint` directory"
        )


def save(
    folder: str | PathLike[str], step: int, run: Json, state: Any, info: Json
) -> None:
    """Writes the run as it is after `step` steps, then deletes what it replaces.

    Args:
        folder: of the run's checkpoints, made if missing.
        step: steps done over all epochs.
        run: from `fingerprint`.
        state: a pytree of arrays.
        info: JSON.
    """
    from orbax.checkpoint import v1 as ocp

    root = Path(folder).absolute()
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"step_{step:09d}"
    metadata = {"run": run, "info": info, "crc": _crc(state)}
    ocp.save(str(path), _stored(state), custom_metadata=metadata, overwrite=True)
    # Later ones could not be read, or the run would not be here.
    earlier = sorted(found for found in _found(root) if found[0] < step)
    later = [found for found in _found(root) if found[0] > step]
    for _, other in [*earlier[: 1 - KEPT], *later]:
        shutil.rmtree(other, ignore_errors=True)
    for half in root.glob("step_*.orbax-checkpoint-tmp*"):
        shutil.rmtree(half, ignore_errors=True)


def load(
    folder: str | PathLike[str], run: Json, state: Any
) -> tuple[int, Any, Json] | None:
    """The newest checkpoint in `folder` that is whole.

    Args:
        folder: where `save` wrote.
        run: fingerprint of the run that wants to continue.
        state: shapes of what is to be loaded.

    Returns:
        `(step, state, info)`, or None where nothing was saved yet.

    Raises:
        ValueError: what is there belongs to another run.
        CheckpointError: nothing of what is there can be read.
    """
    found = sorted(_found(Path(folder).absolute()), reverse=True)
    for step, path in found:
        kept = _metadata(path)
        if kept is not None:
            # Compared first: a wrong target would name a leaf, not the reason.
            _check_run(path, kept["run"], run)
            values = _arrays(path, state)
            if values is not None and _crc(values) == kept["crc"]:
                return step, values, kept["info"]
        if path != found[-1][1]:
            warn(
                f"fit: the checkpoint {path} is damaged; the run goes on from the one "
                "before",
            )
    if found:
        raise CheckpointError(
            f"fit: no checkpoint in {folder} can be read, all are damaged: restore a "
            "copy, or delete the directory to start anew"
        )
    return None


def newest(folder: str | PathLike[str]) -> Json:
    """The fingerprint of the run in `folder`.

    Raises:
        CheckpointError: nothing there can be read.
    """
    for _, path in sorted(_found(Path(folder).absolute()), reverse=True):
        kept = _metadata(path)
        if kept is not None:
            return kept["run"]
    raise CheckpointError(
        f"fit: there is no checkpoint in {folder}; train with checkpoint=... first"
    )


def _check_run(path: Path, other: Json, run: Json) -> None:
    if other != run:
        what = [k for k in {**run, **other} if other.get(k) != run.get(k)]
        raise ValueError(
            f"fit: the checkpoint {path} belongs to another run (different: "
            f"{', '.join(what)}); give another `checkpoint` directory, or delete "
            "this one to start anew"
        )


def _metadata(path: Path) -> Json | None:
    """What `save` wrote beside the arrays; None where it is damaged."""
    from orbax.checkpoint import v1 as ocp

    kept = _attempt(lambda: ocp.metadata(str(path)).custom_metadata)
    # Orbax logs a broken file and answers with nothing.
    whole = isinstance(kept, dict) and {"run", "info", "crc"} <= set(kept)
    return kept if whole else None


def _arrays(path: Path, like: Any) -> Any:
    """The saved state, in the shapes and places of `like`; None where it is damaged."""
    from orbax.checkpoint import v1 as ocp

    target = jax.tree.map(_shape, _stored(like))
    flat = _attempt(lambda: ocp.load(str(path), target))
    if flat is None or set(flat) != set(target):
        return None
    leaves = [_leaf(flat.get(name), leaf) for name, leaf in _flat(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _attempt(call: Any) -> Any:
    """The result of a call, None if it fails; what Orbax would log stays silent."""

    def never(_: logging.LogRecord) -> bool:
        return False

    failed = False
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for logger in loggers:
        logger.addFilter(never)
    try:
        return call()
    except Exception:  # of any kind: JSON, files, tensorstore
        failed = True
    finally:
        # The traceback held failed tasks, which complain when they are collected.
        _ = failed and gc.collect()
        for logger in loggers:
            logger.removeFilter(never)


def _found(root: Path) -> list[tuple[int, Path]]:
    # Orbax writes beside the final name and renames: a full match is complete.
    paths = root.glob("step_*") if root.is_dir() else ()
    matches = [(re.fullmatch(r"step_(\d+)", p.name), p) for p in paths]
    return [(int(m[1]), p) for m, p in matches if m]


def _flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(p, simple=True, separator="|"): leaf for p, leaf in leaves
    }


def _stored(tree: Any) -> dict[str, Any]:
    """The arrays that go to disk: random keys as numbers, and no empty ones.

    Orbax refuses arrays of no elements, and there is nothing to keep of them.
    """
    named = {name: _plain(leaf) for name, leaf in _flat(tree).items()}
    return {name: leaf for name, leaf in named.items() if leaf.size}


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _leaf(found: Any, like: Any) -> Any:
    """A leaf from what was stored of it."""
    if found is None:
        return like
    if _is_key(like):
        return jax.random.wrap_key_data(found, impl=jax.random.key_impl(like))
    return found


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _shape(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    # With the sharding of this run: the saved one may name devices that are not here.
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _crc(tree: Any) -> int:
    value = 0
    for name, leaf in _flat(tree).items():
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(np.asarray(_plain(leaf)).tobytes(), value)
    return value
