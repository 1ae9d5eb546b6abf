"""The reference parent on disk, and what else is in folders of results."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cutjax import checkpoint
from cutjax.cli.common import write_json
from cutjax.data import Dataset, digits_scenes
from cutjax.errors import CheckpointError
from cutjax.metrics import accuracy
from cutjax.models import eval_apply, train_apply
from cutjax.models.reference import BATCH_SIZE, EPOCHS, reference, train_reference
from cutjax.source import Job, from_source, graph_of


def load_job(source: str | None, parent: Path) -> Job:
    """The model of `source` if that is given, else the reference parent in `parent`."""
    return from_source(source) if source else from_parent(parent)


def train_parent(
    folder: Path,
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    scenes: Mapping[str, int] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains the reference parent, or continues; writes it and a record.

    Args:
        folder: `fit` in it keeps the run, `model` the result, `train.json` the record.
        seed: of scenes, weights and order.
        epochs: passes over the scenes.
        batch_size: examples per step.
        scenes: scenes per split where not the default, see `digits_scenes`.
        progress: show a progress bar.

    Returns:
        The record: parameters, accuracy on the test split in percent, history.
    """
    sizes = dict(scenes or {})
    data = digits_scenes(seed, sizes)
    model, params, info = train_reference(
        data,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        checkpoint=folder / "fit",
        progress=progress,
    )
    apply = eval_apply(model)
    graph = graph_of(apply, params, data)
    record = {
        "scenes": {"seed": seed, "sizes": sizes},
        "params": graph.cost().params,
        "seconds": info.seconds,
        "test": accuracy(apply, params, data.test),
        "best_epoch": info.best_epoch,
        "history": info.history,
    }
    checkpoint.save(
        folder / "model",
        params,
        graph=graph,
        keep={},
        overwrite=True,
        provenance=record["scenes"],
    )
    write_json(folder / "train.json", record)
    return record


def from_parent(folder: Path) -> Job:
    """The reference parent that `cutjax train` (or the demo) left in a folder.

    Raises:
        CheckpointError: there is none.
    """
    if not (folder / "model").exists() and (folder / "fit").is_dir():
        train_parent(
            folder, progress=False
        )  # the demo keeps the run only: with the default settings
    record = read_record(folder)
    if "made" in record:
        raise CheckpointError(
            f"{folder} holds a cut model; give the parent that `cutjax train` wrote"
        )
    apply, train, data = untrained(record["scenes"])
    _, params, _ = checkpoint.load(folder / "model", apply)
    return Job(apply, train, params, data)


def untrained(
    scenes: Mapping[str, Any],
) -> tuple[Callable[..., Any], Callable[..., Any], Dataset]:
    """The reference model's two functions, and the scenes of a record."""
    data = digits_scenes(scenes["seed"], scenes["sizes"])
    model = reference(data)
    return eval_apply(model), train_apply(model), data


def read_record(folder: Path) -> dict[str, Any]:
    """The record in a folder made by `cutjax train` or `cutjax cut`.

    Raises:
        CheckpointError: there is none.
    """
    for name in ("cut.json", "train.json"):
        if (folder / name).exists():
            return json.loads((folder / name).read_text())
    raise CheckpointError(
        f"{folder} holds no model; make one with `cutjax train --out {folder}` (a "
        f"parent) or `cutjax cut --parent runs/parent --params 0.32 --out {folder}`"
    )
