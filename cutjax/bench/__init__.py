"""Honest benchmarks: full against compact, compiled by XLA on the CPU."""

from cutjax.bench.bundle import BenchError as BenchError
from cutjax.bench.flops import (
    UncountableError as UncountableError,
    count_flops as count_flops,
)
from cutjax.bench.measure import measure as measure
from cutjax.bench.report import table as table
from cutjax.bench.settings import SETTINGS as SETTINGS
from cutjax.bench.timing import (
    Timing as Timing,
    best as best,
    machine as machine,
    speedup as speedup,
    to_json as to_json,
)
