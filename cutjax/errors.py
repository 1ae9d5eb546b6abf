"""Errors that say what is wrong, where, and the call that would work."""

import difflib
import sys
import warnings
from collections.abc import Iterable, Sequence
from types import FrameType

NAMED = 8
"""Names in a message, at most."""


class CutjaxError(ValueError):
    """Base of all errors that cutjax raises about its input."""


class TraceError(CutjaxError):
    """A function does something whose effect on channels is not known."""


class KeepError(CutjaxError):
    """A keep does not fit the graph: names, sizes, pinned groups, empty groups."""


class MismatchError(CutjaxError):
    """Parameters or inputs do not match what the graph was traced with."""


class BudgetError(CutjaxError):
    """A budget that cannot be met; the message says the least that can."""


class DataError(CutjaxError):
    """Data is missing, empty, or holds NaN."""


class CheckpointError(CutjaxError):
    """A checkpoint is missing, corrupt, foreign, or made by another model."""


def suggest(name: str, known: Iterable[str]) -> str:
    """The known names nearest to a wrong one, for the end of an error message."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    some = near or known[:5]
    return ("nearest: " if near else "known: ") + ", ".join(map(repr, some))


def warn(message: str) -> None:
    """Warn at the line of the caller of cutjax, however deep this is called."""
    frame, level = sys._getframe(1), 2
    while frame is not None and _package(frame) in ("cutjax", "jax", "jaxtyping"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def listed(names: Sequence[str]) -> str:
    """Names for a message: the first NAMED, and how many more there are.

    Example:
        >>> listed(["a", "b"])
        "'a', 'b'"
    """
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more


def _package(frame: FrameType) -> str:
    return frame.f_globals.get("__name__", "").partition(".")[0]
