"""How close a child's outputs come to its parent's, on some of the batches."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from cutjax.recover.lockstep import Pair
from cutjax.recover.program import Program
from cutjax.rules.base import shape_of

KEPT = 2**27
"""Numbers of outputs that are kept, of parent and child each, to compare at the end."""


def which(prog: Program, batches: int) -> list[int]:
    """The batches whose outputs are kept to compare: all, if that is little memory."""
    each = sum(math.prod(shape_of(v)) for v in prog.frame.jaxpr.outvars)
    number = min(max(KEPT // max(each, 1), 1), batches)
    return np.linspace(0, batches - 1, number).round().astype(int).tolist()


def whole(judged: Mapping[int, list[Pair]]) -> Float[np.ndarray, " outputs"]:
    """The parent's squared outputs, summed over the batches."""
    return np.sum([_squares(_numbers(pairs, 0)) for pairs in judged.values()], 0)


def error(judged: Mapping[int, list[Pair]]) -> float:
    """Of all that is kept; NaN is worst."""
    found = mean(np.sum([wrong(p) for p in judged.values()], 0), whole(judged))
    return found if math.isfinite(found) else math.inf


def _numbers(pairs: Sequence[Pair], side: int) -> list[np.ndarray]:
    """One side's floating outputs, in double precision; indices, masks are left out."""
    floats = [p for p in pairs if jnp.issubdtype(p.parent.dtype, jnp.floating)]
    return [np.asarray(p[side], np.float64) for p in floats]


def _squares(values: Iterable[np.ndarray]) -> Float[np.ndarray, " outputs"]:
    return np.array([np.sum(np.square(v)) for v in values], np.float64)


def wrong(pairs: Sequence[Pair]) -> Float[np.ndarray, " outputs"]:
    """Squared errors of one batch, a sum per output."""
    return _squares(map(np.subtract, _numbers(pairs, 1), _numbers(pairs, 0)))


def mean(wrong: Any, whole: Any) -> float:
    """Squared error over squared answers, the mean over outputs."""
    return float(np.mean(wrong / np.maximum(whole, 1e-30))) if np.size(whole) else 0.0
