"""Loops that end by a condition: there is no derivative backwards through them."""

from typing import Any

import jax

from cutjax.rules.base import Value, shape_of
from cutjax.saliency.criterion import Problem
from cutjax.walk import Walker, line_of

BACKWARDS = "Reverse-mode differentiation does not work"
"""How JAX's error begins."""


def no_way_back(problem: Problem, inputs: tuple[Any, ...]) -> str:
    """What to say of it, with the lines of such loops."""
    walker, apply = Walker("pin"), problem.apply
    jaxpr, _ = jax.make_jaxpr(apply, return_shape=True)(problem.params, *inputs)  # type: ignore[arg-type]
    news = walker.solver.news
    _ = walker.run(jaxpr, [Value(news(shape_of(v))) for v in jaxpr.jaxpr.invars])
    found = dict.fromkeys(
        line_of(frame.where(index))
        for frame in walker.frames
        for index, eqn in enumerate(frame.jaxpr.eqns)
        if eqn.primitive is jax.lax.while_p
    )
    return (
        "these criteria need derivatives, which JAX cannot take through a "
        f"`while_loop` whose length it does not know\n  at {'; '.join(found)}\n"
        "  try: `lax.scan`, or `fori_loop` with static bounds; or criteria of weights "
        "alone, such as cutjax.l1"
    )
