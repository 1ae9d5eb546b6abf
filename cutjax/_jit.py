"""`jax.jit` for the programs that cutjax itself runs: training steps, measuring passes.

On CPU they are compiled without YNNPACK's fusions. By default one global pool pulls the
convolutions before it into a single slow loop: gradients of the small residual networks
of scripts/recovery took 1.8 and 2.6 times as long (jax 0.10.2, two AVX2 cores).
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax

from cutjax._compat import QUICK, SELDOM, trace_state_clean

_YNN = "xla_cpu_experimental_ynn_fusion_type"


def jit(
    fn: Callable[..., Any], *, quick: bool = False, seldom: bool = False, **options: Any
) -> Any:
    """A jitted function; the user's own word in XLA_FLAGS goes first.

    Args:
        fn: the function.
        quick: it runs so seldom that compiling takes the time: optimise little.
            (Scoring and refitting a small network: 5 s, not 60, on a busy core.)
        seldom: it runs tens of times: leave out what takes a third of the compile time
            and brings nothing to convolutions. (The steps of `compensate`: a ResNet-50
            by 512 images takes 89 s, not 100, on two cores.)
        **options: of `jax.jit`.

    Returns:
        What `jax.jit` returns; within another transformation, which has options of its
        own, it is called without these.
    """
    if jax.default_backend() != "cpu":
        return jax.jit(fn, **options)
    chosen = {_YNN: "", **(QUICK if quick else SELDOM if seldom else {})}
    said = os.environ.get("XLA_FLAGS", "")
    left = {name: value for name, value in chosen.items() if name not in said}
    if not left:
        return jax.jit(fn, **options)
    alone = jax.jit(fn, compiler_options=left, **options)
    return _Jitted(alone, jax.jit(fn, **options))


class _Jitted:
    """A jitted function, and the same without compiler options, which JAX refuses
    within another `jax.jit`."""

    def __init__(self, alone: Any, within: Any) -> None:
        functools.update_wrapper(self, alone)
        self._alone, self._within = alone, within

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = self._alone if trace_state_clean() else self._within
        return run(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._alone, name)
