"""The parent's side of a worker: start it, ask it, and be sure that it is gone."""

import json
import os
import select
import subprocess
import sys
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
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(_SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=_environment(len(cpus)),
                start_new_session=True,  # Ctrl-C is for the parent, which cleans up
            )
        self.send(bundle.job | {"cpus": list(cpus)})

    def send(self, message: dict[str, Any]) -> None:
        """Sends a command without waiting for the answer."""
        pipe = self.process.stdin
        try:
            if pipe is not None:
                _ = pipe.write(json.dumps(message).encode() + b"\n")
                pipe.flush()
        except BrokenPipeError:
            pass  # `receive` sees the end of the other pipe and can say more

    def receive(self) -> dict[str, Any]:
        """Waits for the next answer.

        Returns:
            What the worker said.

        Raises:
            WorkerDied: the process ended, or kept silent for longer than `patience`.
        """
        pipe = self.process.stdout
        if pipe is None or not select.select([pipe], [], [], self.patience)[0]:
            self.close(wait=0.0)
            raise WorkerDied(self._obituary(f"no answer in {self.patience:g} s"))
        line = pipe.readline()
        if not line:
            code = self.process.wait()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise WorkerDied(self._obituary(how))
        return json.loads(line)

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """`send`, then `receive`."""
        self.send(message)
        return self.receive()

    def close(self, wait: float = 2.0) -> None:
        """Ends the process: kindly at first, by force after `wait` seconds."""
        pipe = self.process.stdin
        try:
            if pipe is not None:
                pipe.close()
        except BrokenPipeError:
            pass
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
        if self.process.stdout is not None:
            self.process.stdout.close()

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
