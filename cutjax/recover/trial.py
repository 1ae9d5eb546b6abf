"""Trying which groups can be turned, on parameters with noise and random matrices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float
from tqdm import tqdm

from cutjax._jit import jit
from cutjax.graph import Graph
from cutjax.recover.follow import evaluated, given_to
from cutjax.recover.program import Program
from cutjax.recover.turned import turned
from cutjax.recover.turns import Stuck, Turn, turn_of

SAME = 1e-3
"""The relative difference of outputs up to which they are called the same."""

SEEN = "more than linear maps and normalisations see its channels"
UNSEEN = f"{SEEN}, or numbers of 16 bits hide that it is no more"

TRIALS = 3
"""Sets of noisy parameters, each with a random turn of its own."""


def turns_of(
    prog: Program,
    graph: Graph,
    answer: Callable[[Sequence[Any]], Sequence[Any]],
    leaves: Sequence[Any],
    inputs: tuple[Any, ...],
    names: Sequence[str],
    *,
    progress: bool = True,
) -> tuple[dict[str, Turn], dict[str, str]]:
    """What can be turned, by trial on a few examples, and why others cannot.

    Args:
        prog: the program, of a few examples.
        graph: of its parameters.
        answer: the function on them, from parameters to outputs.
        leaves: the parameters.
        inputs: the examples.
        names: of groups.
        progress: show a progress bar.

    Returns:
        Turns, and reasons, by group.
    """
    trials = [_noisy(leaves, seed) for seed in range(TRIALS)]
    # Where noise leads out of a function's domain, the parameters as they are.
    trials = [p for p in trials if _finite(answer(p))] or [[*leaves]]
    env, want = _values(prog, trials[0], inputs), [answer(p) for p in trials]

    def holds(turn: Turn) -> bool:
        size = graph[turn.name].size
        # Of two channels only an exchange leaves their mean as it is.
        if size <= 1 + turn.centred:
            return False
        for seed, params in enumerate(trials):
            new = turned(graph, turn, params, _random(seed, size, turn))
            if not gap(answer(new), want[seed]) < SAME:
                return False
        return True

    turns, left = {}, {}
    for name in tqdm(names, desc="rotate", disable=not progress, leave=False):
        try:
            turn = turn_of(prog, graph, name, env)
        except Stuck as stuck:
            left[name] = str(stuck)
            continue
        both = (turn, turn._replace(centred=True))
        found = next((t for t in both if holds(t)), None)
        if found is None:
            left[name] = UNSEEN if _rounds(prog) else SEEN
        else:
            turns[name] = found
    return turns, left


def _noisy(leaves: Sequence[Any], seed: int) -> list[Any]:
    """Parameters of other values without zeros, so that nothing is hidden.

    What is positive stays so: variances.
    """
    rng, out = np.random.default_rng(seed), []
    for leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            out.append(jnp.asarray(leaf))
            continue
        value = np.asarray(leaf, np.float32)
        noise = rng.normal(size=value.shape)
        size = np.sqrt(np.mean(value**2)) or 0.1
        positive = value.size and value.min() > 0
        value = value * np.exp(0.3 * noise) if positive else value + size * noise
        out.append(jnp.asarray(value, jnp.float32))
    return out


def _rounds(prog: Program) -> bool:
    """Whether something is worked out in 16 bits."""
    made = (v for eqn in prog.frame.jaxpr.eqns for v in eqn.outvars)
    return any(is_short(v.aval.dtype) for v in made)


def is_short(dtype: Any) -> bool:
    """Whether numbers have 16 bits or fewer."""
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4


def _finite(outputs: Sequence[Any]) -> bool:
    return all(np.isfinite(np.asarray(out, np.float32)).all() for out in outputs)


def _values(prog: Program, leaves: Sequence[Any], inputs: Any) -> dict[Any, Any]:
    every = [var for eqn in prog.frame.jaxpr.eqns for var in eqn.outvars]
    made: list[Any] = []

    def run(leaves: Sequence[Any], inputs: Any) -> list[Any]:
        env = evaluated(prog, given_to(prog, leaves, inputs), every)
        made.extend(env)
        return list(env.values())

    values = jit(run)(leaves, inputs)
    return dict(zip(made, values, strict=True))


def gap(got: Sequence[Any], want: Sequence[Any]) -> float:
    """The relative difference of some arrays from others."""
    pairs = zip(got, want, strict=True)
    both = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    wrong = sum(np.sum((a - b) ** 2) for a, b in both)
    return float(np.sqrt(wrong / max(sum(np.sum(b**2) for _, b in both), 1e-30)))


def _random(seed: int, n: int, turn: Turn) -> Float[np.ndarray, "n n"]:
    inner = n - turn.centred
    rng = np.random.default_rng([seed, n])
    matrix, _ = np.linalg.qr(rng.normal(size=(inner, inner)))
    if not turn.centred:
        return matrix
    contrasts = scipy.linalg.helmert(n).T
    return contrasts @ matrix @ contrasts.T + 1 / n
