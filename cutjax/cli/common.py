"""What the commands share: errors as a paragraph, quiet logs, whole files or none."""

import json
import logging
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from rich.console import Console
from rich.table import Table

from cutjax.errors import CheckpointError, CutjaxError, DataError

# Into a file or a pipe rich writes 80 columns, in which the wide tables are unreadable.
console = Console(width=None if sys.stdout.isatty() else 140)
_PACKAGE = Path(__file__).parents[1]


def quiet() -> None:
    """Silences what absl and Orbax log below an error."""
    for name in ("absl", "orbax", "jax"):
        logging.getLogger(name).setLevel(logging.ERROR)


def complaint(error: Exception) -> str | None:
    """What to say of an error that we raised about the input.

    Returns:
        A paragraph, or None for an error that deserves its traceback: one raised in
        somebody else's code, or of a kind that a bug raises.
    """
    from cutjax.bench import BenchError

    frames = traceback.extract_tb(error.__traceback__)
    here = bool(frames) and _PACKAGE in Path(frames[-1].filename).parents
    wrong_input = isinstance(error, (ValueError, FloatingPointError))
    # Python names the module of an import that failed; ours says what to install.
    uninstalled = isinstance(error, ImportError) and error.name is None
    if isinstance(error, (CutjaxError, BenchError)) or (
        here and (wrong_input or uninstalled)
    ):
        return f"cutjax: {error}"
    return None


def check_free(out: Path, *, overwrite: bool) -> None:
    """Checks, before minutes of work, that results may go to a folder.

    Raises:
        CheckpointError: something is there, or what is there is no folder.
    """
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file; give another --out, for a folder")
    if not overwrite and out.exists() and any(out.iterdir()):
        raise CheckpointError(
            f"{out} exists; give another --out, or --overwrite to replace it"
        )


def check_seed(seed: int) -> None:
    """Checks the number that all that is random is drawn from.

    Raises:
        DataError: it is below 0.
    """
    if seed < 0:
        raise DataError(f"--seed {seed}: give a whole number, 0 or more")


@contextmanager
def whole(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when all is written and vanishes otherwise.

    Args:
        out: the folder to make.
        overwrite: replace what is there.

    Yields:
        A folder beside it.

    Raises:
        CheckpointError: `out` exists.
    """
    check_free(out, overwrite=overwrite)
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield part
        part.chmod(0o755)  # mkdtemp makes folders for the owner alone
        if out.is_dir():
            shutil.rmtree(out)
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def accuracies(title: str, rows: Mapping[str, Mapping[str, float]]) -> Table:
    """Percent per task, a row per model, and the mean."""
    tasks = list(next(iter(rows.values())))
    table = Table("", *tasks, "mean", title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, values in rows.items():
        mean = sum(values.values()) / len(values)
        table.add_row(name, *(f"{values[t]:.2f}" for t in tasks), f"{mean:.2f}")
    return table


def cost_record(cost: Any) -> dict[str, Any]:
    """Parameters, FLOPs and bytes as JSON."""
    return {"params": cost.params, "flops": cost.flops, "bytes": cost.bytes}


def write_json(path: Path, value: Any) -> None:
    """Writes JSON beside its final name and renames it: never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, indent=2) + "\n")
    part.replace(path)
