"""Running statistics as they are now, and the same function all the same."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from cutjax._jit import jit
from cutjax.errors import DataError, MismatchError, warn
from cutjax.given import several
from cutjax.inputs import equal_inputs, first
from cutjax.mirror import named_leaves
from cutjax.recover.follow import evaluated, given_to
from cutjax.recover.norms import Norm, norms_of
from cutjax.recover.program import Program, program
from cutjax.trace import trace


class Spread(NamedTuple):
    """Mean and variance per channel."""

    mean: Any
    var: Any


def settle(
    apply: Callable[..., Any],
    params: Any,
    batches: Iterable[Any],
    *,
    state: Collection[str] | str = ("batch_stats",),
    progress: bool = True,
) -> Any:
    """Set running statistics to those of the data; scales and biases make up for it.

    A compensated network is less spread out than what it was fitted to, so it expects
    statistics that its own batches do not have: the first step of a training with
    moving statistics would undo the fit. Afterwards it answers as before, and in
    training too.

    Args:
        apply: the function in inference, `(params, x) -> outputs`.
        params: with the running means and variances.
        batches: `(x, ...)` or bare inputs, all of one size; others are left out.
        state: parts of the paths that tell statistics from what is trained: the name of
            their collection, or `("mean", "var")` where all of a layer lies together.
        progress: show a progress bar.

    Returns:
        `params` with other statistics, scales and biases. A normalisation without a
        scale and a bias of its own, or that is used twice, keeps its statistics; so
        does one that is no affine function of these, with a warning.

    Raises:
        DataError: no data, or values that are NaN or infinite.
        MismatchError: nothing is normalised by such statistics.

    Example:
        >>> import jax.numpy as jnp
        >>> from cutjax.recover import settle
        >>> def apply(p, x):
        ...     h = (x - p["seen"]["mean"]) * jax.lax.rsqrt(p["seen"]["var"])
        ...     return h * p["scale"] + p["bias"]
        >>> seen = {"mean": jnp.zeros(1), "var": jnp.ones(1)}
        >>> p = {"seen": seen, "scale": jnp.ones(1), "bias": jnp.zeros(1)}
        >>> x = jnp.array([[1.0], [5.0]])
        >>> new = settle(apply, p, [x], state=("seen",), progress=False)
        >>> {k: float(v[0]) for k, v in new["seen"].items()}
        {'mean': 3.0, 'var': 4.0}
        >>> apply(new, x).tolist() == apply(p, x).tolist()
        True
    """
    given = equal_inputs(batches, empty="no data to settle on")
    # One example tells what is normalised where, at the size of its arrays.
    one = first(given[0], 1)
    graph = trace(apply, params, *one, on_unknown="pin")
    prog, whole = (program(apply, graph, {}, x) for x in (one, given[0]))
    leaves = list(named_leaves(params).values())
    parts = {*several(state)}
    moving = {i for i, p in enumerate(prog.paths) if parts & {*p.split("/")}}
    norms = list(norms_of(prog, moving))
    if not norms:
        raise MismatchError(
            f"nothing is normalised by running statistics called {sorted(parts)}; the "
            f"paths of the parameters are {', '.join(prog.paths[:6])}, ..."
        )
    alike = [_counterpart(prog, whole, norm.x) for norm in norms]
    ats = [norm.at for norm in norms]
    spreads = _measured(whole, alike, ats, leaves, given, progress)
    for norm, spread in zip(norms, spreads, strict=True):
        leaves = _settled(prog, norm, leaves, spread)
    return jax.tree.unflatten(graph.treedef, leaves)


def _counterpart(prog: Program, other: Program, var: Any) -> Any:
    """A variable of one program in another of the same function."""
    index = prog.frame.makers.get(var)
    if index is None:
        return other.frame.jaxpr.invars[prog.frame.jaxpr.invars.index(var)]
    eqn, twin = (p.frame.jaxpr.eqns[index] for p in (prog, other))
    return twin.outvars[eqn.outvars.index(var)]


def _measured(
    prog: Program,
    variables: Sequence[Any],
    ats: Sequence[Int[np.ndarray, "..."]],
    leaves: Sequence[Any],
    given: Sequence[tuple[Any, ...]],
    progress: bool,
) -> list[Spread]:
    """Means and variances of what is normalised, over all data, in double precision."""

    def of(leaves: Sequence[Any], inputs: tuple[Any, ...]) -> Any:
        env = evaluated(prog, given_to(prog, leaves, inputs), variables)
        pairs = zip(variables, ats, strict=True)
        return [_spread(env[var], at) for var, at in pairs]

    measure = jit(of)
    bar = tqdm(given, desc="settle", disable=not progress, leave=False)
    parts = [jax.device_get(measure(leaves, x)) for x in bar]
    found = [_together(of_norm) for of_norm in zip(*parts, strict=True)]
    if not all(np.isfinite(value).all() for spread in found for value in spread):
        raise DataError(
            "what is normalised is NaN or infinite; look for NaN in the inputs or the "
            "parameters"
        )
    return found


def _spread(x: Any, at: Int[np.ndarray, "..."]) -> Spread:
    """Mean and variance of a batch, shaped like `at`."""
    axes = tuple(i for i, n in enumerate(at.shape) if n == 1)
    x = x.astype(jnp.float32)
    return Spread(x.mean(axes, keepdims=True), x.var(axes, keepdims=True))


def _together(parts: Sequence[Spread]) -> Spread:
    """Of batches of one size."""
    means, variances = (np.asarray(v, np.float64) for v in zip(*parts, strict=True))
    return Spread(means.mean(0), variances.mean(0) + means.var(0))


def _settled(
    prog: Program, norm: Norm, leaves: Sequence[Any], spread: Spread
) -> list[Any]:
    """The leaves with the statistics measured, a scale and a bias that fit them."""
    held = {name: np.asarray(leaves[i], np.float64) for name, i in norm.numbers.items()}

    def placed(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        out = np.zeros(held["mean"].size)
        out[norm.at.ravel()] = np.asarray(values, np.float64).ravel()
        return out.reshape(held["mean"].shape)

    reach = _reach(norm, held, spread)

    def line() -> tuple[np.ndarray, np.ndarray]:
        """How far y rises to the reach of x, and where from, as things stand."""
        low, high = (placed(_through(prog, norm, held, x)) for x in (0 * reach, reach))
        return high - low, low

    rise, start = line()
    held["mean"], held["var"] = placed(spread.mean), placed(spread.var)
    held["scale"] = np.zeros_like(held["scale"])
    without = line()[0]
    held["scale"] = held["scale"] + 1
    held["scale"] = (rise - without) / (line()[0] - without)
    held["bias"] = held["bias"] + start - line()[1]
    if not np.allclose(line(), (rise, start), 1e-3, 1e-5 * np.abs(rise).max()):
        warn(
            f"settle: {prog.paths[norm.mean]!r} and {prog.paths[norm.var]!r} stay as "
            "they are: no scale and bias make up for those of the data in "
            f"{norm.x.aval.dtype}; see whether its output is a line over its input, "
            "and use float32",
        )
        return list(leaves)
    out = list(leaves)
    for name, i in norm.numbers.items():
        out[i] = jnp.asarray(held[name].astype(jnp.result_type(leaves[i])))
    return out


def _reach(
    norm: Norm, held: Mapping[str, np.ndarray], spread: Spread
) -> Float[np.ndarray, "..."]:
    """How far from zero x goes, shaped like `at`, as a power of two.

    Beside a value of that size, a step of one would be lost in float32.
    """
    old = Spread(*(held[name].ravel()[norm.at] for name in Spread._fields))
    sizes = [np.abs(s.mean) + np.sqrt(np.abs(s.var)) for s in (old, spread)]
    return 2 ** np.ceil(np.log2(np.maximum(np.maximum(*sizes), 1)))


def _through(
    prog: Program,
    norm: Norm,
    held: Mapping[str, np.ndarray],
    x: Float[np.ndarray, "..."],
) -> Any:
    """What becomes of a value that is `x` in each channel, shaped like `at`."""
    invars = prog.frame.jaxpr.invars
    env = {
        invars[i]: jnp.asarray(held[name], invars[i].aval.dtype)
        for name, i in norm.numbers.items()
    }
    given = jnp.asarray(x, norm.x.aval.dtype)
    env[norm.x] = jnp.broadcast_to(given, norm.x.aval.shape)
    y = np.asarray(evaluated(prog, env, [norm.y])[norm.y])
    for axis, n in enumerate(norm.at.shape):
        y = y.take([0], axis) if n == 1 else y
    return y
