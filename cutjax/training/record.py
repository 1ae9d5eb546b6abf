"""What a run counts as it goes: means of metrics, its place, and lines of JSON.

The place is part of a checkpoint. Sums are kept in Python's floats and added one by
one, so that an interrupted epoch has the very means of an uninterrupted one.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

ADVICE = (
    "lower the learning rate, clip gradients (optax.clip_by_global_norm) or look for "
    "NaN in the data"
)


class Tally(NamedTuple):
    """Sums of metrics over `count` steps."""

    count: int = 0
    sums: dict[str, float] = {}  # noqa: RUF012 (never changed)


class Place(NamedTuple):
    """How far a run has come: `step` steps of epoch `epoch` (from 1) are done.

    Attributes:
        epoch: the epoch that the next step belongs to.
        step: steps of it that are done.
        seconds: spent on it.
        tally: of its metrics.
        window: of the metrics since the last line that `log_every` wrote.
    """

    epoch: int = 1
    step: int = 0
    seconds: float = 0.0
    tally: Tally = Tally()
    window: Tally = Tally()


def place_of(kept: Mapping[str, Any]) -> Place:
    """A place from what JSON made of its `_asdict()`."""
    tallies = {name: Tally(*kept[name]) for name in ("tally", "window")}
    return Place(**{**kept, **tallies})


def tallied(place: Place, pending: Sequence[Mapping[str, Any]]) -> Place:
    """The place after steps whose metrics are waited for here.

    Args:
        place: before them.
        pending: per call of the step, metrics of one step or of several.

    Returns:
        The place after them, but for its seconds.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    for metrics in jax.device_get(pending):
        rows = {name: np.atleast_1d(values) for name, values in metrics.items()}
        for i in range(len(rows["loss"])):
            now = {name: float(values[i]) for name, values in rows.items()}
            place = place._replace(
                step=place.step + 1,
                tally=_plus(place.tally, now),
                window=_plus(place.window, now),
            )
            _check(now["loss"], place)
    return place


def means(tally: Tally) -> dict[str, float]:
    """The mean of each metric.

    Example:
        >>> means(Tally(2, {"loss": 3.0}))
        {'loss': 1.5}
    """
    return {name: total / tally.count for name, total in tally.sums.items()}


def _plus(tally: Tally, now: Mapping[str, float]) -> Tally:
    sums = {name: tally.sums.get(name, 0.0) + value for name, value in now.items()}
    return Tally(tally.count + 1, sums)


def _check(loss: float, place: Place) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"fit: the loss is {loss} at step {place.step} of epoch {place.epoch}; "
            f"{ADVICE}"
        )


def open_lines(path: str | PathLike[str], step: int, *, resumed: bool) -> None:
    """Makes a file of metrics ready: what came after `step` is dropped.

    Args:
        path: of the file; folders are made.
        step: the last step, over all epochs, that the run knows.
        resumed: False starts the file anew.

    Raises:
        ValueError: the file holds something else.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = _parsed(file)
    kept = [line for line in lines if resumed and line["step"] <= step]
    # Renamed over the old one: an interruption here loses no line.
    aside = file.with_name(f".{file.name}.tmp")
    _ = aside.write_text("".join(map(_line, kept)))
    os.replace(aside, file)


def write_line(path: str | PathLike[str], kind: str, step: int, record: Any) -> None:
    """Appends one JSON object; numbers that are not finite become null.

    Args:
        path: of the file.
        kind: `epoch`, or `steps` for a line of `log_every`.
        step: steps done, over all epochs.
        record: the rest of the object.
    """
    with Path(path).open("a") as file:
        ours = {"kind": kind, "step": step}
        _ = file.write(_line({**ours, **record, **ours}))


def _parsed(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text().splitlines() if file.exists() else []
    found = []
    for i, line in enumerate(lines):
        try:
            found.append(json.loads(line))
        except ValueError:
            if i < len(lines) - 1 or not line.startswith("{"):
                raise _foreign(file) from None
            # An interruption may cut the last line short.
    if not all(
        isinstance(line, dict) and {"kind", "step"} <= {*line} for line in found
    ):
        raise _foreign(file)
    return found


def _foreign(file: Path) -> ValueError:
    return ValueError(
        f"fit: {file} holds something else than metrics of a run; give `metrics` "
        "another path, or delete the file"
    )


def _line(record: Any) -> str:
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
