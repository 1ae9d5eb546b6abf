"""The parent's side of a worker: start it, ask it, and be sure that it is gone."""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from cutjax.bench.bundle import BenchError, Bundle

_SCRIPT = Path(__file__).with_name("worker.py")


class WorkerDied(BenchError):
    """The process ended without an answer."""


class Worker:
    """A live process with one candidate in it; a context manager.

    Commands may be sent ahead; answers come in their order.
    """

    def __init__(
        self, bundle: Bundle, log: Path, cpus: Sequence[int], patience: float
    ) -> None:
        """Starts the process, pinned to `cpus`, without waiting for it."""
        self.name, self.log, self.patience = bundle.name, log, patience
        self.stdout, theirs = os.pipe()
        self.unread = b""
        command = [sys.executable, "-P", str(_SCRIPT)]
        with log.open("wb") as stderr, os.fdopen(theirs, "wb") as stdout:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                env=_environment(len(cpus)),
                start_new_session=True,  # Ctrl-C is for the parent, which cleans up
            )
        if self.process.stdin is None:
            raise WorkerDied(f"candidate {self.name!r}: no pipe to its process")
        self.stdin = self.process.stdin
        self.send(bundle.job | {"cpus": list(cpus)})

    def send(self, message: dict[str, Any]) -> None:
        """Sends a command without waiting for the answer."""
        # A dead worker is for `receive` to report, which knows how it ended.
        with contextlib.suppress(BrokenPipeError):
            _ = self.stdin.write(json.dumps(message).encode() + b"\n")
            self.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Waits for the next answer.

        Returns:
            What the worker said.

        Raises:
            WorkerDied: the process ended, or kept silent for longer than `patience`.
        """
        deadline = time.monotonic() + self.patience
        # os.read and an own buffer: select does not see what a Python file has read.
        while b"\n" not in self.unread:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self.stdout], [], [], left)[0]:
                self.close(wait=0.0)
                raise WorkerDied(self._obituary(f"no answer in {self.patience:g} s"))
            chunk = os.read(self.stdout, 1 << 16)
            if not chunk:
                code = self.process.wait()
                how = f"signal {-code}" if code < 0 else f"exit code {code}"
                raise WorkerDied(self._obituary(how))
            self.unread += chunk
        line, self.unread = self.unread.split(b"\n", 1)
        return json.loads(line)

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """`send`, then `receive`."""
        self.send(message)
        return self.receive()

    def close(self, wait: float = 2.0) -> None:
        """Ends the process: kindly at first, by force after `wait` seconds."""
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        try:
            _ = self.process.wait(wait)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _ = self.process.wait()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(wait=0.0 if error else 2.0)
        os.close(self.stdout)

    def _obituary(self, how: str) -> str:
        said = self.log.read_text(errors="replace").strip().splitlines()[-8:]
        tail = "\n  ".join(["", *said]) if said else " nothing"
        return f"the process of candidate {self.name!r} died ({how}); it said:{tail}"


def _environment(threads: int) -> dict[str, str]:
    # Flags of the parent would make 'default' something else; a compilation cache
    # would make compile_s a lie.
    dropped = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "NPROC")
    env = {k: v for k, v in os.environ.items() if k not in dropped}
    return env | {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": str(int(jax.config.read("jax_enable_x64"))),
        "NPROC": str(threads),  # sizes XLA's pool, also where affinity cannot be set
    }
