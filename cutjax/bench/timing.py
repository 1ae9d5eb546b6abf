"""What one measurement is, and the questions one asks of many."""

import dataclasses
import json
import math
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil


@dataclasses.dataclass(frozen=True)
class Timing:
    """One candidate at one batch size, thread count and compiler setting.

    Times are NaN where the installed XLA refused the setting.

    Attributes:
        name: the candidate.
        batch: examples per call.
        threads: threads of the process, each on a CPU of its own; None means all.
        setting: key of the compiler options, see `cutjax.bench.settings`.
        median_ms: wall time of one call, the median over the calls of all rounds.
        p10_ms: the 10th percentile of the same.
        p90_ms: the 90th.
        cpu_ms: CPU time of one call over all threads, the median over rounds.
        compile_s: seconds to compile; another candidate may have compiled meanwhile.
        peak_bytes: arguments (weights included), outputs and temporaries, as XLA
            allocates them.
        flops: multiply-adds of one call of the whole batch, counted as two; None if a
            `while_loop` hides them.
        params: elements of the params pytree.
        file_bytes: the weights, saved as an uncompressed npz.
        calls: how many calls were timed.
        refused: why the setting could not be measured, or empty.
    """

    name: str
    batch: int
    threads: int | None
    setting: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    cpu_ms: float
    compile_s: float
    peak_bytes: int
    flops: int | None
    params: int
    file_bytes: int
    calls: int
    refused: str = ""


def best(
    timings: Sequence[Timing], name: str, batch: int = 1, threads: int | None = 1
) -> Timing:
    """The setting at which a candidate has its lowest median.

    Args:
        timings: what `measure` returned.
        name: the candidate.
        batch: examples per call.
        threads: thread count, None for all.

    Returns:
        One of the timings.

    Raises:
        KeyError: nothing of that kind was measured.
    """
    wanted = (name, batch, threads)
    measured = [t for t in timings if not t.refused]
    found = [t for t in measured if (t.name, t.batch, t.threads) == wanted]
    if not found:
        have = sorted({(t.name, t.batch, t.threads) for t in measured}, key=str)
        raise KeyError(f"no (name, batch, threads) {wanted}; measured: {have}")
    return min(found, key=lambda t: t.median_ms)


def speedup(
    timings: Sequence[Timing],
    a: str,
    b: str,
    batch: int = 1,
    threads: int | None = 1,
    *,
    setting: str | None = None,
) -> float:
    """How many times as fast as `a` candidate `b` is, each at its own best setting.

    Args:
        timings: what `measure` returned.
        a: the slower candidate, usually the full model.
        b: the faster one.
        batch: examples per call.
        threads: thread count, None for all.
        setting: compare both at this setting instead.

    Returns:
        Median of `a` over median of `b`.
    """
    chosen = [t for t in timings if setting in (None, t.setting)]
    slow, fast = (best(chosen, name, batch, threads) for name in (a, b))
    return slow.median_ms / fast.median_ms


def machine() -> dict[str, Any]:
    """What the numbers depend on: processor, cores, memory, versions, load.

    Returns:
        A JSON-ready dictionary.
    """
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_allowed": len(allowed_cpus()),
        "memory_bytes": psutil.virtual_memory().total,
        "load_1min": round(psutil.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "jax": version("jax"),
        "jaxlib": version("jaxlib"),
    }


def to_json(timings: Sequence[Timing]) -> str:
    """The timings beside the machine that they hold for.

    Args:
        timings: what `measure` returned, on this machine.

    Returns:
        JSON with `machine` and `timings`; NaN becomes null.
    """
    rows = [
        {k: None if _is_nan(v) else v for k, v in dataclasses.asdict(t).items()}
        for t in timings
    ]
    return json.dumps({"machine": machine(), "timings": rows}, indent=2)


def allowed_cpus() -> list[int]:
    """The CPUs that this process may use, which containers and `taskset` restrict."""
    get = getattr(os, "sched_getaffinity", None)
    return sorted(get(0)) if get else list(range(os.cpu_count() or 1))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()
