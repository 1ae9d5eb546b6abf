"""`python -m published [OPTIONS] [NAMES...]`: check published models, write a table."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cutjax.errors import CutjaxError

from . import beyond_table, table
from .base import ENTRIES, Entry
from .beyond import beyond
from .check import WrongResult, check
from .table import Row

MODULES = (
    *("encoders", "decoders", "seq2seq", "vision", "pairs"),
    *("diffusers_nets", "haiku_nets", "equimo_nets", "penzai_nets", "brax_nets"),
)


def main() -> int:
    """Checks every model that was asked for; 1 if one is wrong, else 0."""
    options = arguments()
    for name in MODULES:
        importlib.import_module(f"published.{name}")
    chosen = [entry for key, entry in ENTRIES.items() if asked(key, options.names)]
    if options.list or not chosen:
        print("\n".join(ENTRIES) if options.list else "no model has such a name")
        return 0 if options.list else 2
    start, rows = time.time(), []
    bar = tqdm(chosen, unit="model", dynamic_ncols=True)
    for entry in bar:
        bar.set_description(f"{entry.package} {entry.name}"[:40])
        rows.append(row(entry, options, beyond_table.Row if options.beyond else Row))
        if rows[-1].status != "right":
            bar.write(f"{entry.package} {entry.name}: {rows[-1].said}")
    shown = beyond_table if options.beyond else table
    text = shown.page(rows, time.time() - start)
    if options.out:
        Path(options.out).write_text(text)
    print(shown.totals(rows) if options.out else text)
    return int(any(r.status == "wrong" for r in rows))


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="scripts/zoo", description=__doc__)
    add = parser.add_argument
    add("names", nargs="*", help="parts of package/name; all models without any")
    add("--list", action="store_true", help="names only")
    add("--out", help="where to write the page; prints it, if not given")
    add("--seed", type=int, default=0, help="of the channels to cut")
    add("--beyond", action="store_true", help="merge and refit instead of cutting")
    add("--gradients", action="store_true", help="compare gradients too; slower")
    return parser.parse_args()


def asked(key: str, names: list[str]) -> bool:
    """Whether a model was asked for."""
    return not names or any(name.lower() in key.lower() for name in names)


def row(entry: Entry, options: argparse.Namespace, kind: Any) -> Any:
    """The line of a model, whatever happens; of this kind."""

    def failed(status: str, error: Exception) -> Any:
        first = (str(error).strip().splitlines() or [""])[0]
        name = "" if isinstance(error, WrongResult) else f"{type(error).__name__}: "
        return kind(entry.name, entry.package, status, name + first)

    try:
        model = entry()
    except Exception as error:
        return failed("absent", error)
    try:
        if options.beyond:
            found = beyond(model, options.seed)
        else:
            found = check(model, options.seed, options.gradients)
        return kind(entry.name, entry.package, **found)
    except CutjaxError as error:
        return failed("refused", error)
    except Exception as error:  # a crash is as bad as a wrong number
        return failed("wrong", error)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    sys.exit(main())
