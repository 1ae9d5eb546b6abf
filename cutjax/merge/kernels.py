"""What a refitted kernel is fitted to and by, and where it is written."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cutjax._compat import Literal
from cutjax.errors import DataError, listed, warn
from cutjax.inputs import held_out
from cutjax.merge.network import Networks
from cutjax.recover import normal
from cutjax.recover.follow import bias_of, reach_of
from cutjax.recover.normal import Moments
from cutjax.recover.program import Program, terminals
from cutjax.recover.rows import (
    Sample,
    enough,
    features_of,
    is_matrix,
    made_axes,
    steps_for,
)
from cutjax.resize import Reader

Env = dict[Any, Any]
Solve = Callable[[Sequence[Sequence[Moments]], np.ndarray, bool], normal.Solution]
"""From the moments of each network's batches, the kernel so far, and if it may shift.
"""

measure = jax.jit(normal.moments)


def by_members(
    found: Mapping[str, list[Moments]],
    members: Mapping[str, np.ndarray],
    prior: np.ndarray,
    solve: Solve,
    intercept: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """One fit for all channels that the same networks went into."""
    kernel, shift = prior.copy(), np.zeros((prior.shape[0], prior.shape[2]))
    inside = np.stack([members[name].all(0) for name in found])
    for pattern in np.unique(inside.T, axis=0):
        at = np.flatnonzero((inside.T == pattern).all(1))
        names = [name for name, there in zip(found, pattern, strict=True) if there]
        if names:
            parts = [[_columns(m, at) for m in found[name]] for name in names]
            fit = solve(parts, prior[..., at], intercept)
            kernel[..., at], shift[:, at] = fit.kernel, fit.shift
    return kernel, shift


def _columns(m: Moments, at: np.ndarray) -> Moments:
    made, cross, square = (np.asarray(v)[..., at] for v in (m.made, m.cross, m.square))
    return m._replace(made=made, cross=cross, square=square)


def scaled(
    networks: Sequence[Sequence[Moments]], prior: np.ndarray, intercept: bool
) -> normal.Solution:
    """The kernel so far, what it makes scaled and shifted to what it should be.

    That is the mean of the networks' means and of their standard deviations; the
    deviation of all rows together would count how far apart the means are.
    """
    each = [normal.merged(parts) for parts in networks]
    whole = normal.merged(each)
    made = np.mean([m.made for m in each], axis=0)
    width = np.mean([np.sqrt(m.square / m.count) for m in each], axis=0)
    whole = whole._replace(made=made, square=whole.count * width**2)
    return normal.rescaled(whole, prior, intercept=intercept)


def damped(damping: float | None) -> Solve:
    """Least squares with a damping, or one that the data choose.

    Raises:
        DataError: a damping that is not above 0.
    """
    normal.check_damping(damping)
    return partial(fitted, damping)


def check_rows(rows: int) -> None:
    """Check how many rows per feature suffice.

    Raises:
        DataError: none do.
    """
    if not rows > 0:
        raise DataError(f"rows={rows}: give a number above 0; 32 per feature are usual")


def warn_of_complex(networks: Networks) -> None:
    """Say which kernels are averaged only: fits are of real numbers."""
    leaves = next(iter(networks.values())).leaves.items()
    found = [path for path, leaf in leaves if jnp.iscomplexobj(leaf)]
    if found:
        warn(f"merge: {listed(found)}: complex, so averaged and not refitted")


def fitted(
    damping: float | None,
    networks: Sequence[Sequence[Moments]],
    prior: np.ndarray,
    intercept: bool,
) -> normal.Solution:
    """Least squares on the moments of some batches; some of each network's judge."""
    fitting, judging = list[Moments](), list[Moments]()
    for parts in networks:
        held = held_out(len(parts))
        for i, m in enumerate(parts):
            (judging if i in held else fitting).append(m)
    if damping is None and judging:
        fit, aside = normal.merged(fitting), normal.merged(judging)
        damping = normal.chosen(
            lambda d: normal.error(
                aside,
                normal.solve(fit, prior, d, intercept=intercept),
                intercept=intercept,
            )
        )
    whole = normal.merged(m for parts in networks for m in parts)
    return normal.solve(whole, prior, damping or 1e-3, intercept=intercept)


def sound(m: Moments, path: str) -> Moments:
    """Moments on the host, checked for NaN."""
    if not normal.sound(m):
        raise DataError(
            f"what the reader of {path!r} reads or should make is NaN or infinite; "
            "look for NaN in the inputs or the parameters"
        )
    return jax.tree.map(np.asarray, m)


def is_free(prog: Program, index: int) -> bool:
    """Whether an equation is a reader whose kernel nothing else uses."""
    if index not in prog.frame.sites or not is_matrix(prog.reader(index)):
        return False
    number = prog.origins.get(prog.kernel(index))
    return number is not None and terminals(prog, number) == {index}


def sample_of(
    reader: Reader, kernel: Any, groups: int, batches: int, rows: int, seed: Any
) -> Sample:
    """Evenly spread rows, as many as suffice; which ones depends on the seed."""
    wanted = enough(features_of(reader, kernel), rows, groups)
    at = int(np.random.default_rng(seed).integers(1 << 30))
    return Sample(steps_for(reader, batches, wanted), at)


def bias_at(
    prog: Program, index: int, kernel: Any, leaves: Mapping[str, Any]
) -> tuple[str, np.ndarray, int] | None:
    """What shifts a reader's result and nothing else: path, positions, sign."""
    reach, shapes = reach_of(prog, index), {p: np.shape(v) for p, v in leaves.items()}
    if reach.bias is None:
        return None
    number = prog.origins[reach.bias.var]
    if prog.paths[number] not in leaves or len(terminals(prog, number)) != 1:
        return None
    found = bias_of(prog, reach, made_axes(prog.reader(index), kernel), shapes)
    return found and (*found, reach.bias.sign)


def shifted(
    prog: Program, index: int, leaves: dict[str, Any], bias: Any, shift: np.ndarray
) -> dict[str, Any]:
    """Parameters with the bias moved by a shift of the reader's result."""
    if bias is None:
        return leaves
    path, where, sign = bias
    leaf = np.array(leaves[path])
    leaf.reshape(-1)[where] += (sign * shift.ravel()).astype(leaf.dtype)
    return {**leaves, path: jnp.asarray(leaf)}


def put(leaf: Any, where: np.ndarray, values: Any) -> Any:
    """A parameter with new values at some flat positions."""
    new = np.array(leaf)
    new.reshape(-1)[np.asarray(where).ravel()] = np.asarray(values, new.dtype).ravel()
    return jnp.asarray(new)


def renew(prog: Program, env: Env, leaves: Mapping[str, Any], paths: Any) -> None:
    """New parameters among the values; what was made of the old ones is forgotten."""
    params = prog.frame.jaxpr.invars
    new = {params[prog.paths.index(path)]: path for path in paths if path in leaves}
    old = set(new)
    for eqn in prog.frame.jaxpr.eqns:
        fixed = not any(prog.frame.values[var].data for var in eqn.outvars)
        named = (a for a in eqn.invars if not isinstance(a, Literal))
        if fixed and not old.isdisjoint(named):
            old.update(eqn.outvars)
    for var in old:
        env.pop(var, None)
    env.update({var: leaves[path] for var, path in new.items()})
