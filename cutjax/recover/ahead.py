"""The steps of a walk, each compiled while those before it run; equal ones once."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from cutjax._compat import Literal
from cutjax._jit import jit

AHEAD, THREADS = 6, 2

UNTOLD = ("callback", "host_transfer")
"""In a program's text: Python functions that it calls by number, whatever they are."""


def ahead(
    steps: Sequence[Callable[..., Any]],
    first: tuple[Any, ...],
    following: Callable[[int, tuple[Any, ...], Any], tuple[Any, ...]],
    *,
    spent: Callable[[int, tuple[Any, ...]], Any] | None = None,
    quick: bool = False,
) -> Iterator[Callable[..., Any]]:
    """Yield each step compiled, a few of the next ones compiling in the background.

    All are traced here, in the caller's thread and settings; only what XLA does is done
    in others. To compile the 55 steps of a ResNet-50 takes as long as to run them on a
    hundred images, so the blocks of a stage, if equally wide, share their programs.

    Args:
        steps: functions, to be called in order.
        first: arguments of the first one, or their shapes.
        following: from a step's number, its arguments and the shapes of its results to
            the arguments of the next one, or their shapes.
        spent: from a step's number and its arguments to what of them nobody needs after
            it, as a tree of truths: the step may write its results there.
        quick: see `cutjax._jit.jit`.

    Yields:
        What is called like the step.
    """
    waiting: deque[tuple[_Step, Future[Any]]] = deque()
    known: dict[str, Future[Any]] = {}
    pool = ThreadPoolExecutor(THREADS)
    try:
        args = first
        for number, step in enumerate(steps):
            gone = None if spent is None else spent(number, args)
            traced = _traced(step, args, jax.tree.leaves(gone))
            lowered = traced.lowered(quick)
            key = text = lowered.as_text()
            if any(word in text for word in UNTOLD):
                key = f"{number}: {text}"
            if key not in known:
                known[key] = pool.submit(lowered.compile)
            waiting.append((traced, known[key]))
            args = following(number, args, traced.shapes)
            if len(waiting) > AHEAD:
                yield _ready(*waiting.popleft())
        while waiting:
            yield _ready(*waiting.popleft())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Step(NamedTuple):
    """A step as a flat program of what it needs alone: its constants, some arguments.

    So what differs between two of them by constants only, or by what they leave alone,
    is one program. `used`: which arguments it reads, first those that are left to the
    caller, then those that it may write over.
    """

    jaxpr: Any
    consts: list[Any]
    used: tuple[list[int], list[int]]
    shapes: Any

    def lowered(self, quick: bool) -> Any:
        """For XLA, with placeholders for what is left alone."""
        number = len(self.jaxpr.invars)

        def run(consts: list[Any], left: list[Any], spent: list[Any]) -> list[Any]:
            found = dict(zip(chain(*self.used), chain(left, spent), strict=True))
            args = [found.get(index) for index in range(number)]
            return jaxpr_as_fun(ClosedJaxpr(self.jaxpr, consts))(*args)

        shapes = [
            [_size(self.jaxpr.invars[index]) for index in part] for part in self.used
        ]
        made = jit(run, quick=quick, seldom=True, donate_argnums=2)
        return made.lower(self.consts, *shapes)


def _size(var: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype)


def _traced(
    step: Callable[..., Any], args: tuple[Any, ...], spent: Sequence[bool]
) -> _Step:
    closed, shapes = jax.make_jaxpr(step, return_shape=True)(*args)
    jaxpr = closed.jaxpr
    atoms = [a for eqn in closed.eqns for a in eqn.invars] + jaxpr.outvars
    needed = {a for a in atoms if not isinstance(a, Literal)}
    # Where no result is of their size there is nothing to write: XLA would warn.
    room = Counter(map(_size, jaxpr.outvars))
    left, over = list[int](), list[int]()
    for index, var in enumerate(jaxpr.invars):
        if var not in needed:
            continue
        may = bool(spent) and spent[index] and room[_size(var)] > 0
        room[_size(var)] -= may
        (over if may else left).append(index)
    return _Step(jaxpr, closed.consts, (left, over), shapes)


def _ready(step: _Step, compiled: Future[Any]) -> Callable[..., Any]:
    run, tree = compiled.result(), jax.tree.structure(step.shapes)

    def call(*args: Any) -> Any:
        leaves = jax.tree.leaves(args)
        parts = ([leaves[index] for index in part] for part in step.used)
        return jax.tree.unflatten(tree, run(step.consts, *parts))

    return call
