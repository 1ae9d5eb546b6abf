"""Channels by what cannot be rebuilt from the others, whatever the task.

For a reader with kernel W let C be the second moment of its input. With the channels K
kept and the reader refitted by least squares, the error in what it makes is
tr(R_K W W^T), R_K = C - C_:K C_KK^-1 C_K:. Backward, channels go one by one, always the
one whose going costs least: `joint` with the identity for the gradients. Forward, they
are taken one by one, always the one that the taken ones explain least: the pivots of a
Cholesky factorisation of C.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float, Inexact

from cutjax.saliency.criterion import Criterion, Problem, Scores, Sums, double
from cutjax.saliency.family import criterion
from cutjax.saliency.joint import eliminate
from cutjax.saliency.moments import MOMENTS, Moments, moments


@criterion
def reconstruction(
    order: Literal["backward", "forward"] = "backward", damping: float = 1e-3
) -> Criterion:
    """Score channels by the error of reconstruction that their going leaves.

    Args:
        order: "backward" is greedy elimination by the error in what readers make;
            "forward" is pivoted Cholesky of the second moment, blind to the kernels.
        damping: of the inverse, as in `joint`; "forward" has none.

    Returns:
        A criterion, the same for all tasks; in squared units of what readers make.

    Reference:
        He, Zhang & Sun, ICCV 2017, eq. 1 (selection by reconstruction); Higham,
        Analysis of the Cholesky Decomposition of a Semi-definite Matrix, 1990.
    """

    def scores(problem: Problem, sums: Sums) -> dict[str, Scores]:
        state = moments(sums)
        if order == "forward":
            return problem.alike(_pivots(state, problem))
        same = state._replace(
            outputs={k: np.eye(v.shape[-1])[None] for k, v in state.outputs.items()},
            gates={k: np.mean(v, 0, keepdims=True) for k, v in state.gates.items()},
        )
        return problem.alike(eliminate(problem.graph, same, [1.0], damping=damping))

    return Criterion("reconstruction", scores, MOMENTS)


def _pivots(state: Moments, problem: Problem) -> Scores:
    out: Scores = {}
    for group in problem.graph.free:
        grams = [
            double(gram) / max(np.trace(gram).real, 1e-30)
            for (_, name), gram in state.inputs.items()
            if name == group.name
        ]
        if grams:
            out[group.name] = residuals(np.sum(grams, 0))
        else:
            out[group.name] = np.mean(state.gates[group.name], 0).astype(np.float32)
    return out


def residuals(gram: Inexact[np.ndarray, "n n"]) -> Float[np.ndarray, "n"]:
    """What of each channel its predecessors do not explain, in order of pivots.

    Example:
        >>> residuals(np.array([[4.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 9.0]]))
        array([4., 0., 9.], dtype=float32)
    """
    left = double(gram)
    out = np.zeros(len(left))
    free = np.ones(len(left), bool)
    for _ in range(len(left)):
        rest = np.where(free, np.real(np.diag(left)), -np.inf)
        at = int(np.argmax(rest))
        free[at] = False
        out[at] = max(rest[at], 0.0)
        if out[at] > 1e-12 * np.trace(gram).real:
            left = left - np.outer(left[:, at], left[at]) / out[at]
    return out.astype(np.float32)
