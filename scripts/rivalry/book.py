"""Rows of results, each made once: a killed run continues where it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from studies import store
from tqdm import tqdm

Row = dict[str, Any]


class Book:
    """The rows of one network and side, in a file that both sides append to."""

    def __init__(self, path: Path, net: str, side: str):
        self.path, self.of = path, {"net": net, "side": side}
        found = (row for row in store.read(path) if self.of.items() <= row.items())
        self.known: dict[str, Row] = {row["key"]: row for row in found}

    def row(self, stage: str, measure: Callable[[], Row], **names: Any) -> Row:
        """The row of a stage with these names; measured if it is not there."""
        key = "|".join(map(str, (*self.of.values(), stage, *names.values())))
        if key not in self.known:
            made = {"key": key, **self.of, "stage": stage, **names, **measure()}
            store.append(self.path, made)
            self.known[key] = made
            shown = {k: v for k, v in made.items() if isinstance(v, float)}
            tqdm.write(f"{key}  {' '.join(f'{k}={v:.4g}' for k, v in shown.items())}")
        return self.known[key]

    def rows(self, stage: str, **names: Any) -> list[Row]:
        """All rows of a stage that have these names."""
        wanted = {"stage": stage, **names}
        return [row for row in self.known.values() if wanted.items() <= row.items()]
