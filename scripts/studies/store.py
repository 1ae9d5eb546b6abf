"""Results as JSON lines: one per finished cell, appended whole, read back on resume."""

import json
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """All whole lines; a last one cut short by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def append(path: Path, row: Row) -> None:
    """One line in one write, on a line of its own whatever was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(row, sort_keys=True) + "\n"
    if path.exists() and path.stat().st_size and path.read_bytes()[-1:] != b"\n":
        text = "\n" + text
    with open(path, "ab", buffering=0) as file:
        written = file.write(text.encode())
        if written != len(text):
            raise OSError(f"{path}: wrote {written} of {len(text)} bytes; disk full?")
        os.fsync(file.fileno())
