"""Which nets a test runs on by default, where it has all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def by_turns(names: Iterable[str], every: int, first: int = 0) -> list[Any]:
    """All names; by default every so many, of several tests different ones."""
    return [
        pytest.param(name, marks=pytest.mark.slow if (i + first) % every else ())
        for i, name in enumerate(names)
    ]
