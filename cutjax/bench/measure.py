"""Full against compact on XLA CPU: fresh processes, timed in turn."""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm

from cutjax.bench.bundle import BenchError, Bundle, bundle
from cutjax.bench.process import Worker, WorkerDied
from cutjax.bench.settings import SETTINGS, Options
from cutjax.bench.timing import Timing, allowed_cpus

Key = tuple[int, str]  # batch size, setting


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How to measure; the same for every candidate."""

    keys: tuple[Key, ...]
    settings: Mapping[str, Options]
    rounds: int
    seconds: float
    patience: float
    directory: Path


def measure(
    candidates: Mapping[str, tuple[Callable[..., Any], Any]],
    x: Any,
    *,
    batch_sizes: Sequence[int] = (1, 32),
    threads: Sequence[int | None] = (1, None),
    rounds: int = 5,
    seconds_per_round: float = 0.2,
    settings: Mapping[str, Options] = SETTINGS,
    max_workers: int = 8,
    patience: float = 300.0,
    progress: bool = True,
) -> list[Timing]:
    """Times functions against each other on the CPU, one at a time and in turn.

    Every candidate runs in a fresh process, compiled ahead of time at every setting,
    its weights arguments and its inputs in place. Processes start and compile side by
    side; only when all are ready does timing begin, one candidate running while the
    others sleep: A B A B, `rounds` times. The machine should be otherwise idle:
    `p90_ms` far above `median_ms` says that it was not.

    Args:
        candidates: name -> `(apply, params)`, with `apply(params, x)`; any pytrees.
            Of a tuple `x`, `apply(params, *x)`.
        x: one batch, leading axis the batch: an array or `jax.ShapeDtypeStruct` (or a
            pytree of them). Other batch sizes repeat or drop examples.
        batch_sizes: examples per call.
        threads: threads per process, each on one CPU; None means all that are allowed.
        rounds: how often each candidate has its turn.
        seconds_per_round: wall time of one turn; at least three calls are made.
        settings: name -> XLA compiler options. What XLA refuses, or crashes on, comes
            back as a `Timing` with `refused`.
        max_workers: live processes, each 0.2 GB and its model. More candidates than
            this are interleaved in blocks.
        patience: seconds to wait for an answer before a process counts as hung.
        progress: show a bar.

    Returns:
        One `Timing` per thread count, candidate, batch size and setting.

    Raises:
        BenchError: a candidate cannot be exported, its process dies, or no setting
            works for it.

    Example:
        >>> timings = measure(
        ...     {"full": (apply, params), "compact": cut(apply, params, graph, keep)},
        ...     x, batch_sizes=(1,), threads=(1,),
        ... )  # doctest: +SKIP
        >>> speedup(timings, "full", "compact")  # doctest: +SKIP
    """
    _check(batch_sizes, threads, rounds, max_workers)
    keys = tuple((batch, setting) for batch in batch_sizes for setting in settings)
    timings: list[Timing] = []
    with tempfile.TemporaryDirectory(prefix="cutjax-bench-") as name:
        directory = Path(name)
        plan = _Plan(keys, settings, rounds, seconds_per_round, patience, directory)
        bundles = [
            bundle(name, *candidate, x, batch_sizes, directory / f"{i}")
            for i, (name, candidate) in enumerate(candidates.items())
        ]
        turns = len(threads) * len(bundles) * len(keys) * rounds
        with tqdm(total=turns, desc="bench", disable=not progress) as bar:
            for count in threads:
                for block in _blocks(bundles, max_workers):
                    timings += _race(block, count, plan, bar.update)
    return timings


def _race(
    block: Sequence[Bundle], threads: int | None, plan: _Plan, tick: Callable[[], Any]
) -> list[Timing]:
    """The candidates of one block at one thread count."""
    cpus = _cpus(threads)
    with ExitStack() as stack:
        workers = [
            _start(stack, b, _starting_cpus(cpus, i), plan) for i, b in enumerate(block)
        ]
        ready = [
            _prepared(stack, worker, b, cpus, plan)
            for worker, b in zip(workers, block, strict=True)
        ]
        runs: list[dict[Key, list[dict[str, Any]]]] = [{} for _ in block]
        for _ in range(plan.rounds):
            for key in plan.keys:
                for (worker, replies), mine in zip(ready, runs, strict=True):
                    if "refused" not in replies[key]:
                        command = {"do": "run", "key": _label(key)}
                        reply = worker.ask(command | {"seconds": plan.seconds})
                        mine.setdefault(key, []).append(reply)
                    _ = tick()
        return [
            _timing(b, threads, key, replies[key], mine.get(key, []))
            for b, (_, replies), mine in zip(block, ready, runs, strict=True)
            for key in plan.keys
        ]


def _start(
    stack: ExitStack, source: Bundle, cpus: Sequence[int], plan: _Plan, skip: Any = ()
) -> Worker:
    """A worker with all its compile commands already in the pipe."""
    log = Path(source.job["weights"]).with_name("stderr.log")
    worker = stack.enter_context(Worker(source, log, cpus, plan.patience))
    for batch, setting in plan.keys:
        if (batch, setting) not in skip:
            options = dict(plan.settings[setting])
            command = {"do": "compile", "key": _label((batch, setting))}
            worker.send(command | {"batch": batch, "options": options})
    return worker


def _prepared(
    stack: ExitStack, worker: Worker, source: Bundle, cpus: Sequence[int], plan: _Plan
) -> tuple[Worker, dict[Key, dict[str, Any]]]:
    """Waits until everything is compiled; a setting that crashes is left out."""
    crashed: dict[Key, dict[str, Any]] = {}
    while True:
        _ = worker.receive()  # that it is up
        replies = dict(crashed)
        todo = [key for key in plan.keys if key not in crashed]
        try:
            for key in todo:
                replies[key] = worker.receive()
        except WorkerDied as death:
            # jaxlib 0.10.2 segfaults on some reductions at its default setting
            # (jax-ml/jax#39257, #40412); the others still deserve a measurement.
            crashed[key] = {"refused": str(death)}
            worker = _start(stack, source, cpus, plan, crashed)
            continue
        _raise_if_none(source.name, replies)
        _ = worker.ask({"do": "pin", "cpus": list(cpus)})
        return worker, replies


def _raise_if_none(name: str, replies: Mapping[Key, dict[str, Any]]) -> None:
    for batch in {batch for batch, _ in replies}:
        mine = {s: r for (b, s), r in replies.items() if b == batch}
        if all("refused" in reply for reply in mine.values()):
            why = "\n".join(f"  {s}: {r['refused']}" for s, r in mine.items())
            raise BenchError(
                f"candidate {name!r} runs at no setting for batch {batch}:\n{why}"
            )


def _timing(
    source: Bundle,
    threads: int | None,
    key: Key,
    reply: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
) -> Timing:
    walls = [wall for run in runs for wall in run["wall_ms"]]
    p10, p50, p90 = np.percentile(walls, (10, 50, 90)) if walls else (math.nan,) * 3
    return Timing(
        name=source.name,
        batch=key[0],
        threads=threads,
        setting=key[1],
        median_ms=float(p50),
        p10_ms=float(p10),
        p90_ms=float(p90),
        cpu_ms=median(run["cpu_ms"] for run in runs) if runs else math.nan,
        compile_s=reply.get("compile_s", math.nan),
        peak_bytes=reply.get("peak_bytes", 0),
        flops=source.flops[key[0]],
        params=source.params,
        file_bytes=source.file_bytes,
        calls=len(walls),
        refused=reply.get("refused", ""),
    )


def _label(key: Key) -> str:
    return f"{key[0]}/{key[1]}"


def _cpus(threads: int | None) -> list[int]:
    """The last ones: the first CPU serves most interrupts."""
    allowed = allowed_cpus()
    return allowed if threads is None else allowed[-threads:]


def _starting_cpus(cpus: Sequence[int], index: int) -> list[int]:
    """Compile one-thread workers side by side; they are timed on one and the same."""
    allowed = allowed_cpus()
    return [allowed[index % len(allowed)]] if len(cpus) == 1 else list(cpus)


def _blocks(bundles: Sequence[Bundle], most: int) -> Iterator[Sequence[Bundle]]:
    count = math.ceil(len(bundles) / most)
    for i in range(count):
        yield bundles[i * len(bundles) // count : (i + 1) * len(bundles) // count]


def _check(
    batch_sizes: Sequence[int],
    threads: Sequence[int | None],
    rounds: int,
    max_workers: int,
) -> None:
    allowed = len(allowed_cpus())
    if any(t is not None and not 1 <= t <= allowed for t in threads):
        raise ValueError(f"threads={threads}: this process may use {allowed} CPUs")
    if min((rounds, max_workers, *batch_sizes)) < 1:
        raise ValueError("rounds, max_workers and batch_sizes must be at least 1")
