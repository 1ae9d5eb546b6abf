"""The joint activation-gradient criterion: what is lost once the readers are refitted.

For a reader with kernel W let C be the second moment of its input (activation side) and
G_t that of slopes of L_t at its output (gradient side), each row weighted by what is
read there: factors of the mean of products, not products of means. If the channels K
stay and the reader is refitted by least squares, the loss of task t rises to second
order (Gauss-Newton, with Kronecker factors) by 1/2 tr(R_K W G_t W^T), where
R_K = C - C_:K C_KK^-1 C_K: is what the kept channels cannot rebuild. Slopes are draws
that hold the curvature of the loss (`curvature`): it does not vanish where a network
answers its targets, nor follows the noise of labels. Eliminating channel after channel
has a closed form: with H = (C_KK + lambda I)^-1, B = C_:K H and P = B^T (W G_t W^T) B,
removing channel i costs P_ii / (2 H_ii), and H and P then change by an update of rank
one. Channels are scaled to a mean square of one before: in whatever units they are.
"""

import numpy as np
from jaxtyping import Float, Inexact

from cutjax.graph import Graph
from cutjax.saliency.criterion import (
    Criterion,
    Problem,
    Scores,
    Sums,
    double,
)
from cutjax.saliency.family import criterion
from cutjax.saliency.moments import MOMENTS, Moments, moments


@criterion
def joint(damping: float = 1e-3) -> Criterion:
    """Score channels by the loss that stays after their readers were refitted.

    Args:
        damping: lambda, as a share of the mean square of each of a reader's channels.

    Returns:
        A criterion, in units of the loss: the rise when the channel goes after all that
        are worth less.

    Reference:
        Martens & Grosse, K-FAC, ICML 2015; Hassibi & Stork, Optimal Brain Surgeon,
        NIPS 1992, of which this is the channel form with refitted readers.
    """

    def scores(problem: Problem, sums: Sums) -> dict[str, Scores]:
        state, tasks = moments(sums), problem.tasks
        return {
            task: eliminate(
                problem.graph, state, [float(t == task) for t in tasks], damping=damping
            )
            for task in tasks
        }

    return Criterion("joint", scores, MOMENTS)


def eliminate(
    graph: Graph, state: Moments, weights: list[float], *, damping: float = 1e-3
) -> Scores:
    """Scores for a weighted sum of tasks, from moments already collected.

    Args:
        graph: the graph.
        state: moments of the calibration data.
        weights: one per task of the moments.
        damping: see `joint`.

    Returns:
        Per group, f32[n].
    """
    w = np.asarray(weights, np.float64)
    out: Scores = {}
    for group in graph.free:
        readers = [
            _factors(state, number, name, w)
            for number, name in state.inputs
            if name == group.name
        ]
        gates = np.einsum("t,tn->n", w, np.asarray(state.gates[group.name], np.float64))
        out[group.name] = _order(readers, gates, damping)
    return out


def _factors(state: Moments, number: int, name: str, weights: np.ndarray):
    """The two sides of one reader: C, and W G W^T summed over the window."""
    gram = double(state.inputs[number, name])
    grad = np.einsum("t,tij->ij", weights, double(state.outputs[number]))
    if np.iscomplexobj(grad):
        grad = grad / 2  # The mean square of a real part is half of the whole.
    half = double(state.kernels[number, name]).conj() @ _root(grad)
    return gram, np.einsum("knm,klm->nl", half, half.conj(), optimize=True)


def _diagonal(matrix: Inexact[np.ndarray, "n n"]) -> Float[np.ndarray, "n"]:
    """Of a Hermitian matrix: real."""
    return np.real(np.diag(matrix))


def _root(matrix: Inexact[np.ndarray, "m m"]) -> Inexact[np.ndarray, "m m"]:
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def _order(readers: list, gates: np.ndarray, damping: float) -> Float[np.ndarray, "_"]:
    """Backward elimination; a channel's score is its cost as it goes, never falling."""
    n = len(gates)
    inverse, cost = [], []
    for gram, weight in readers:
        size = np.sqrt(_diagonal(gram))
        size = np.where(size > 0, size, 1.0)
        gram, weight = gram / np.outer(size, size), weight * np.outer(size, size)
        h = np.linalg.inv(gram + damping * np.eye(n))
        b = gram @ h
        inverse.append(h)
        cost.append(b.T.conj() @ weight @ b)
    left = np.arange(n)
    scores, reached = np.zeros(n), 0.0
    # Large groups lose several channels at a time: each block is exact in itself.
    block = max(1, n // 256)
    while len(left):
        now = gates[left] / 2
        for h, p in zip(inverse, cost, strict=True):
            now = now + _diagonal(p) / (2 * np.maximum(_diagonal(h), 1e-30))
        gone = np.argsort(now, kind="stable")[:block]
        reached = np.maximum(reached, now[gone])
        scores[left[gone]] = reached
        reached = reached.max()
        stay = np.setdiff1d(np.arange(len(left)), gone)
        pairs = [_remove(h, p, gone, stay) for h, p in zip(inverse, cost, strict=True)]
        inverse, cost = [h for h, _ in pairs], [p for _, p in pairs]
        left = left[stay]
    return scores.astype(np.float32)


def _remove(h: np.ndarray, p: np.ndarray, gone: np.ndarray, stay: np.ndarray):
    """H and P without some channels: Schur complement of the block in H."""
    step = np.linalg.solve(h[np.ix_(gone, gone)], h[np.ix_(gone, stay)])
    cross = p[np.ix_(stay, gone)] @ step
    twice = step.T.conj() @ p[np.ix_(gone, gone)] @ step
    p = p[np.ix_(stay, stay)] - cross - cross.T.conj() + twice
    return h[np.ix_(stay, stay)] - h[np.ix_(stay, gone)] @ step, p
