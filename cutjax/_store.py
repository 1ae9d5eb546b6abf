"""Arrays and metadata in an Orbax checkpoint, written whole or not at all.

Orbax renames what it has finished, but `overwrite` deletes the old checkpoint first.
Here the new one is finished beside it in a hidden folder and then takes its place.
Orbax is imported where it is used: that costs more than most runs save.
"""

import gc
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cutjax.errors import CheckpointError

Json = dict[str, Any]

_MARKS = ("_CHECKPOINT_METADATA", "orbax.checkpoint")
_ROOT = "(root)"
_NOTHING = "(nothing)"


def place(path: str | PathLike[str], overwrite: bool) -> Path:
    """The absolute path that a checkpoint may be written to.

    Raises:
        CheckpointError: something is there and may not be replaced.
    """
    target = Path(path).expanduser().absolute()
    if not os.path.lexists(target):
        return target
    if not overwrite:
        raise CheckpointError(
            f"{target} exists; choose another path, or save(..., overwrite=True)"
        )
    held = os.listdir(target) if target.is_dir() else [target.name]
    if held and not set(held) & set(_MARKS):
        raise CheckpointError(
            f"{target} is not a checkpoint, so overwrite=True does not delete it; "
            "choose another path"
        )
    return target


def write(target: Path, arrays: Mapping[str, np.ndarray], metadata: Json) -> None:
    """Writes a checkpoint to `target`, replacing what is there in one step.

    With several processes all must call it, on a disk that they share.

    Args:
        target: from `place`.
        arrays: by name; empty ones are left to the metadata, as Orbax refuses them.
        metadata: JSON.

    Raises:
        CheckpointError: it could not be written; what was there before still is.
    """
    from orbax.checkpoint import v1 as ocp

    flat = {name or _ROOT: value for name, value in arrays.items() if value.size}
    work, first = None, jax.process_index() == 0
    try:
        work = _workplace(target, first)
        _meet("cutjax: ready to save")
        tree = flat or {_NOTHING: np.zeros(1)}
        ocp.save(str(work / "new"), tree, custom_metadata=metadata)
        if first:
            _replace(work / "new", target, work / "old")
        _meet("cutjax: saved")
    except Exception as error:
        raise CheckpointError(f"cannot write {target}: {said(error)}") from error
    finally:
        if work is not None and first:
            shutil.rmtree(work, ignore_errors=True)


def _workplace(target: Path, first: bool) -> Path:
    """A folder beside the target, so that a rename is enough to publish."""
    if jax.process_count() > 1:
        # All processes have to find it, so it has no random name.
        work = target.parent / f".{target.name}.saving"
        if first:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
        return work
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))


def _meet(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(name)


def _replace(new: Path, target: Path, old: Path) -> None:
    moved = os.path.lexists(target)
    if moved:
        os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        if moved:
            os.rename(old, target)
        raise


def read_metadata(path: str | PathLike[str], key: str) -> tuple[Path, Json]:
    """The absolute path of a checkpoint, and what `write` was given under `key`.

    Raises:
        CheckpointError: nothing is there, or no checkpoint, or one without `key`.
    """
    from orbax.checkpoint import v1 as ocp

    source = Path(path).expanduser().absolute()
    if not source.exists():
        raise CheckpointError(f"there is no checkpoint {source}; save one there first")
    if not source.is_dir() or not any((source / mark).exists() for mark in _MARKS):
        raise CheckpointError(
            f"{source} is not a checkpoint; give load the path that save was given"
        )
    found, error = _quietly(lambda: ocp.metadata(str(source)).custom_metadata)
    if error or not _parses(source / _MARKS[0]):
        raise damaged(source, error or "its metadata is not JSON")
    if not isinstance(found, dict) or not isinstance(found.get(key), dict):
        raise CheckpointError(
            f"{source} is an Orbax checkpoint, but none of cutjax.save; "
            "read it with orbax.checkpoint.v1.load(path)"
        )
    return source, found[key]


def read_arrays(source: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by name, except for empty ones.

    Raises:
        CheckpointError: they cannot be read.
    """
    from orbax.checkpoint import v1 as ocp

    arrays, error = _quietly(lambda: ocp.load(str(source)))
    if error:
        raise damaged(source, error)
    arrays.pop(_NOTHING, None)
    return {"" if k == _ROOT else k: np.asarray(v) for k, v in arrays.items()}


def damaged(source: Path, why: str) -> CheckpointError:
    """The error for a checkpoint that is not what was written."""
    return CheckpointError(
        f"the checkpoint {source} is damaged: {why}; restore a copy, or save it again"
    )


def _parses(file: Path) -> bool:
    # Orbax logs a broken file and answers with an empty dictionary.
    try:
        json.loads(file.read_text())
    except (OSError, ValueError):
        return False
    return True


def said(error: Exception) -> str:
    """An error in one line: its kind, and how its message starts."""
    first, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first[:300]}"


def _quietly(call: Callable[[], Any]) -> tuple[Any, str]:
    """The result of a call, or what its error says; Orbax's log stays silent."""
    with _silent("absl", "asyncio"):
        try:
            return call(), ""
        except Exception as error:
            text = said(error)
        # The traceback holds failed tasks, which complain when they are collected.
        gc.collect()
    return None, text


@contextmanager
def _silent(*names: str) -> Iterator[None]:
    def never(record: logging.LogRecord) -> bool:
        return False

    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(never)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(never)
