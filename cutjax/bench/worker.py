"""One candidate in a process of its own; obeys lines of JSON, answers each with one.

Run as a script, `python -P .../worker.py`, and never as `-m cutjax.bench.worker`: the
latter imports `cutjax`, and with it JAX, before this file can pin anything. For the
same reason nothing of cutjax is imported here.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

Message = dict[str, Any]


def main() -> None:
    """Reads a job from stdin, then commands until stdin ends."""
    out = _private_stdout()
    job = json.loads(sys.stdin.readline())
    pin(job["cpus"])
    loaded = _load(job)
    programs: dict[str, tuple[Any, list[Any]]] = {}
    _say(out, {"pid": os.getpid(), "cpus": _cpus()})
    for line in sys.stdin:
        _say(out, _obey(json.loads(line), loaded, programs))


def pin(cpus: Sequence[int]) -> None:
    """Keeps every thread of this process on the given CPUs, where the OS can."""
    if not hasattr(os, "sched_setaffinity"):
        return
    os.sched_setaffinity(0, cpus)
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), cpus)


def timed(call: Callable[[], Any], seconds: float) -> Message:
    """Calls until the time is up, at least 3 and at most 2000 times.

    Args:
        call: blocks until its result is there.
        seconds: wall time to fill.

    Returns:
        `wall_ms`, one number per call, and `cpu_ms`, the mean CPU time of a call over
        all threads of the process.
    """
    call()  # the caches still hold the candidate that ran before
    walls: list[float] = []
    cpu, begin = time.process_time(), time.perf_counter()
    last = begin
    while len(walls) < 3 or (last - begin < seconds and len(walls) < 2000):
        call()
        now = time.perf_counter()
        walls.append((now - last) * 1e3)
        last = now
    return {
        "wall_ms": walls,
        "cpu_ms": (time.process_time() - cpu) * 1e3 / len(walls),
    }


def _obey(command: Message, loaded: Message, programs: Message) -> Message:
    key = command.get("key", "")
    if command["do"] == "pin":
        pin(command["cpus"])
        return {"cpus": _cpus()}
    if command["do"] == "compile":
        try:
            reply, compiled, args = _compile(command, loaded)
        except Exception as error:  # an unknown option or program; the parent reports
            return {"refused": f"{type(error).__name__}: {error}"[:2000]}
        programs[key] = compiled, args
        return reply
    compiled, args = programs[key]
    return timed(lambda: _block(compiled(*args)), command["seconds"])


def _compile(command: Message, loaded: Message) -> tuple[Message, Any, list[Any]]:
    import jax
    import jax.export

    program, inputs = loaded["programs"][str(command["batch"])]
    args = [loaded["weights"], inputs]
    exported = jax.export.deserialize(bytearray(Path(program).read_bytes()))
    lowered = jax.jit(exported.call).lower(*args)
    begin = time.perf_counter()
    compiled = lowered.compile(compiler_options=command["options"])
    seconds = time.perf_counter() - begin
    for _ in range(2):  # first calls allocate, and a crash shows here
        _block(compiled(*args))
    gc.collect()
    gc.disable()
    reply = {"compile_s": seconds, "peak_bytes": _peak_bytes(compiled)}
    return reply, compiled, args


def _peak_bytes(compiled: Any) -> int:
    # XLA CPU's own peak_memory_in_bytes leaves the temporaries out.
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return held + memory.temp_size_in_bytes - memory.alias_size_in_bytes


def _load(job: Message) -> Message:
    import jax

    jax.devices()  # the thread pool is sized here, after `pin`
    read = {
        batch: (files["program"], _arrays(files["inputs"], files["dtypes"]))
        for batch, files in job["programs"].items()
    }
    return {"weights": _arrays(job["weights"], job["dtypes"]), "programs": read}


def _arrays(path: str, dtypes: Sequence[str]) -> list[Any]:
    import jax
    import numpy as np

    with np.load(path) as file:
        # npz keeps the bits of bfloat16 and its like, not their name.
        arrays = [
            file[f"arr_{i}"].view(jax.numpy.dtype(name))
            for i, name in enumerate(dtypes)
        ]
    return jax.block_until_ready(jax.device_put(arrays))


def _block(result: Any) -> None:
    for array in result:
        array.block_until_ready()


def _cpus() -> list[int]:
    get = getattr(os, "sched_getaffinity", None)
    return sorted(get(0)) if get else list(range(os.cpu_count() or 1))


def _private_stdout() -> TextIO:
    """Keeps stdout for answers: what libraries print goes to stderr, the log."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def _say(out: TextIO, message: Message) -> None:
    _ = out.write(json.dumps(message) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
