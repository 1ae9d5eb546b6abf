"""Widths that make the most of a budget; each way of choosing them in a file.

An `Allocate` takes graph, scores, tasks and budget and returns the width of every group
that has scores; groups without scores stay whole. Add yours by writing such a function.
"""

from cutjax.allocate.base import Allocate, Widths
from cutjax.allocate.greedy import greedy
from cutjax.allocate.meter import Meter
from cutjax.allocate.nested import nested
from cutjax.allocate.ranked import isomorphic, threshold, uniform

__all__ = [
    "Allocate",
    "Meter",
    "Widths",
    "greedy",
    "isomorphic",
    "nested",
    "threshold",
    "uniform",
]
