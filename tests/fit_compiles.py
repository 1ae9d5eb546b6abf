"""Counts what XLA compiles: a step that is traced once may be compiled twice."""

from collections.abc import Callable
from typing import Any

import jax

EVENT = "/jax/core/compile/backend_compile_duration"


def compiled(call: Callable[[], Any]) -> int:
    """How many programs a call compiles."""
    seen = []

    def listen(event: str, *_: Any, **__: Any) -> None:
        if event == EVENT:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        call()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(seen)
