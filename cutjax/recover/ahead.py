"""The steps of a walk, each compiled while those before it run."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from cutjax._jit import jit

AHEAD, THREADS = 6, 2


def ahead(
    steps: Sequence[Callable[..., Any]],
    first: tuple[Any, ...],
    following: Callable[[int, tuple[Any, ...], Any], tuple[Any, ...]],
    *,
    quick: bool = False,
) -> Iterator[Callable[..., Any]]:
    """Yield each step compiled, a few of the next ones compiling in the background.

    All are traced here, in the caller's thread and settings; only what XLA does is done
    in others. To compile the 55 steps of a ResNet-50 takes as long as to run them on a
    hundred images.

    Args:
        steps: functions, to be called in order.
        first: arguments of the first one, or their shapes.
        following: from a step's number, its arguments and the shapes of its results to
            the arguments of the next one, or their shapes.
        quick: see `cutjax._jit.jit`.

    Yields:
        What is called like the step.
    """
    waiting: deque[Future[Any]] = deque()
    pool = ThreadPoolExecutor(THREADS)
    try:
        args = first
        for number, step in enumerate(steps):
            lowered = jit(step, quick=quick, seldom=True).lower(*args)
            waiting.append(pool.submit(lowered.compile))
            args = following(number, args, lowered.out_info)
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
