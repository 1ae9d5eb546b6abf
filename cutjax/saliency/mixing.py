"""Whether a function answers each example alone, or all of a batch together.

Scores are of examples one by one. Where nodes or positions of one example lie along the
first axis and are summed, averaged or attended to, every node would be scored as an
example of its own, without an error. Shapes tell cheaply where that may be: from two
examples to three, every array grows by half, but for what is taken over all of them.
Only where one does not are answers compared. What keeps the shape (a cumulative sum, a
shift from row to row) is not seen.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params

from cutjax._jit import jit
from cutjax.errors import warn
from cutjax.inputs import examples, first
from cutjax.saliency.criterion import Problem

CLEARLY = 0.05
"""The relative difference that rounding to 16 bits does not make."""


def warn_of_mixing(problem: Problem, inputs: tuple[Any, ...]) -> None:
    """Warn if the first example has another answer alone than in its batch.

    Args:
        problem: the function, its parameters, and the tasks whose answers count.
        inputs: of a batch; a batch of one says nothing.
    """

    def answers(params: Any, *inputs: Any) -> Any:
        out = problem.apply(params, *inputs)  # type: ignore[misc]
        return {t: out[t] for t in problem.tasks} if isinstance(out, dict) else out

    job = (answers, problem.params, inputs)
    if examples(inputs=inputs) == 1 or not may_mix(*job):
        return
    try:
        mixed = _differ(*job)
    except Exception:  # a function of its own may take no batch but of one example
        return
    if mixed:
        warn(
            "examples are not independent: the first of a batch has another answer "
            "alone, but scores take the rows of the first axis one by one, each as an "
            "example of its own. Nodes or positions of one example belong behind an "
            "axis of examples, as jax.vmap(net, in_axes=(None, 0)) takes them; batch "
            "statistics should be those of inference",
        )


def may_mix(apply: Callable[..., Any], params: Any, inputs: tuple[Any, ...]) -> bool:
    """Whether something may be taken over all examples, by shapes alone."""

    def traced(n: int) -> Any:
        def sized(a: Any) -> Any:
            a = jax.typeof(a)
            shape = (n, *a.shape[1:]) if a.ndim else ()
            return jax.ShapeDtypeStruct(shape, a.dtype)

        return jax.make_jaxpr(apply)(params, *jax.tree.map(sized, inputs)).jaxpr

    try:
        return _programs_mix(traced(2), traced(3))
    except Exception:  # it takes one size only, or is another program for each
        return True


def _programs_mix(two: Any, three: Any) -> bool:
    """Whether an equation of a program, at two sizes, mixes examples."""
    for pair in zip(two.eqns, three.eqns, strict=True):
        bodies = [[*map(_opened, jaxprs_in_params(eqn.params))] for eqn in pair]
        within = [body for body in zip(*bodies, strict=True) if _grows(*body)]
        if any(_programs_mix(*body) for body in within):
            return True
        # Where what is within is of one example (a loop over them) or of numbers (a
        # scatter), the equation itself tells.
        if not within and _mixes(*pair):
            return True
    return False


def _opened(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _grows(two: Any, three: Any) -> bool:
    """Whether an equation or a program reads what grows with the number of examples."""
    pairs = zip(two.invars, three.invars, strict=True)
    return any(a.aval.shape != b.aval.shape for a, b in pairs)


def _mixes(two: Any, three: Any) -> bool:
    """Whether an equation reads what grows with examples, and makes what does not."""
    made = zip(two.outvars, three.outvars, strict=True)
    return _grows(two, three) and any(
        3 * math.prod(a.aval.shape) != 2 * math.prod(b.aval.shape) for a, b in made
    )


def _differ(apply: Callable[..., Any], params: Any, inputs: tuple[Any, ...]) -> bool:
    """Whether the first example has another answer alone, or none of its own."""
    run, n = jit(apply, quick=True), examples(inputs=inputs)
    alone = jax.tree.leaves(run(params, *first(inputs, 1)))
    among = jax.tree.leaves(run(params, *inputs))
    for a, b in zip(alone, among, strict=True):
        if np.shape(b)[:1] != (n,):
            return True
        one, same = (np.asarray(v[0], np.float64) for v in (a, b))
        if np.linalg.norm(one - same) > CLEARLY * np.linalg.norm(same):
            return True
    return False
