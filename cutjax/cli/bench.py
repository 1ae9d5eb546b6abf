"""`cutjax bench`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from cutjax.cli.common import console, write_json
from cutjax.errors import DataError


@dataclass(frozen=True)
class Bench:
    """Time models against each other on the CPU: full against compact.

    Each runs in a fresh pinned process, compiled ahead of time, one at a time and in
    turn. Speed-ups compare with the first model: each at its own best compiler setting,
    and both at XLA's default. A folder of `cutjax cut` that comes first gets the full
    model that it was cut from in front of it. Leave the machine idle meanwhile.

    Example:
      cutjax bench runs/parent runs/cut --out runs/bench.json

    Writes:
      OUT   the machine, every timing, and the speed-ups, as JSON
    """

    folders: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders that `cutjax train` or `cutjax cut` wrote."""
    out: Path = Path("runs/bench.json")
    """File for the result."""
    batch_sizes: tuple[int, ...] = (1, 32)
    """Examples per call."""
    threads: tuple[int | Literal["all"], ...] = (1, "all")
    """Threads per process."""
    rounds: int = 5
    """Turns of every model."""
    seconds: float = 0.2
    """Length of one turn."""
    progress: bool = True
    """Show progress bars."""


class Candidate(NamedTuple):
    """A model to time, by the name of its folder."""

    name: str
    apply: Any
    params: Any
    x: Any


def run(args: Bench) -> None:
    """Measures, writes, prints."""
    from cutjax.bench import measure, table, to_json

    if not args.folders or min((*args.batch_sizes, args.rounds), default=0) < 1:
        raise DataError(
            "give a folder or more, as in `cutjax bench runs/parent runs/cut`, with "
            "--batch-sizes and --rounds of at least 1"
        )
    candidates = _candidates(args.folders)
    timings = measure(
        {c.name: (c.apply, c.params) for c in candidates},
        candidates[0].x,
        batch_sizes=args.batch_sizes,
        threads=[None if t == "all" else t for t in args.threads],
        rounds=args.rounds,
        seconds_per_round=args.seconds,
        progress=args.progress,
    )
    ups = _speedups(timings, [c.name for c in candidates])
    write_json(args.out, {**json.loads(to_json(timings)), "speedups": ups})
    console.print(table(timings))
    console.print(_table(ups, candidates[0].name))
    print(f"wrote {args.out}")


def _candidates(folders: Sequence[Path]) -> list[Candidate]:
    from cutjax.data.examples import shapes
    from cutjax.errors import MismatchError

    found = [_load(folder) for folder in folders]
    first = _origin(folders[0])
    found = found if first is None else [first, *found]
    inputs = {str(shapes(c.x, 1)): c.name for c in found}
    if len(inputs) > 1:
        raise MismatchError(f"these models take inputs of several shapes: {inputs}")
    names = [c.name for c in found]
    if len(set(names)) < len(names):
        paths = ["full"] * (first is not None) + [str(f) for f in folders]
        found = [c._replace(name=p) for c, p in zip(found, paths, strict=True)]
    return found


def _load(folder: Path) -> Candidate:
    """The model in a folder."""
    from cutjax import checkpoint
    from cutjax.cli.parent import from_parent, read_record, untrained
    from cutjax.source import from_source

    record = read_record(folder)
    if "made" not in record:
        job = from_parent(folder)
        return Candidate(folder.name, job.apply, job.params, job.dataset.calibration.x)
    if record["scenes"] is None:
        job = from_source(record["made"]["source"])
        apply, data = job.apply, job.dataset
    else:
        apply, _, data = untrained(record["scenes"])
    small, params, _ = checkpoint.load(folder / "model", apply)
    return Candidate(folder.name, small, params, data.calibration.x)


def _origin(folder: Path) -> Candidate | None:
    """The full model that the one in a folder was cut from; None if it is full."""
    from cutjax.cli.parent import load_job, read_record

    made = read_record(folder).get("made")
    if made is None:
        return None
    job = load_job(made["source"], Path(made["parent"] or ""))
    return Candidate("full", job.apply, job.params, job.dataset.calibration.x)


def _speedups(timings: Sequence[Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """How many times as fast as the first: both at their best, both at the default."""
    from cutjax.bench import speedup

    full, *others = names
    kinds = dict.fromkeys((t.batch, t.threads) for t in timings)
    rows = []
    for name in others:
        for batch, threads in kinds:
            pair = (timings, full, name, batch, threads)
            try:
                default = speedup(*pair, setting="default")
            except KeyError:  # XLA refused the default for one of them
                default = None
            up = {"best": speedup(*pair), "default": default}
            rows.append({"name": name, "batch": batch, "threads": threads, **up})
    return rows


def _table(ups: Sequence[dict[str, Any]], full: str) -> Any:
    from rich.table import Table

    table = Table("name", "batch", "threads", title=f"times as fast as {full}")
    for heading in ("best setting", "default setting"):
        table.add_column(heading, justify="right")
    for up in ups:
        default = "refused" if up["default"] is None else f"{up['default']:.2f}x"
        head = (up["name"], str(up["batch"]), str(up["threads"] or "all"))
        table.add_row(*head, f"{up['best']:.2f}x", default)
    return table
