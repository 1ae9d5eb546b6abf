"""Programs run equation by equation, so that one may stop at each and look."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from cutjax._compat import Literal
from cutjax.dims import Axis
from cutjax.merge.join import step
from cutjax.merge.permute import places
from cutjax.merge.slots import Slots, summed
from cutjax.recover.follow import NEG, is_affine
from cutjax.recover.program import SAME, Program
from cutjax.rules.base import shape_of


def fetch(prog: Program, env: dict[Any, Any], atom: Any) -> Any:
    """The value of an operand; what is made of parameters alone is made when asked."""
    if isinstance(atom, Literal):
        return atom.val
    if atom not in env:
        index = prog.frame.makers[atom]
        for inner in prog.frame.jaxpr.eqns[index].invars:
            fetch(prog, env, inner)
        step(prog, index, env)
    return env[atom]


def is_data(prog: Program, index: int) -> bool:
    """Whether an equation depends on the inputs."""
    return any(prog.frame.values[v].data for v in prog.frame.jaxpr.eqns[index].outvars)


def advance(prog: Program, index: int, env: dict[Any, Any]) -> None:
    """One equation of those that depend on the inputs."""
    for atom in prog.frame.jaxpr.eqns[index].invars:
        fetch(prog, env, atom)
    step(prog, index, env)


def last_uses(prog: Program) -> dict[int, list[Any]]:
    """By equation, the values of data that nothing reads after it."""
    jaxpr = prog.frame.jaxpr
    last = {
        atom: index
        for index, eqn in enumerate(jaxpr.eqns)
        for atom in eqn.invars
        if not isinstance(atom, Literal) and prog.frame.values[atom].data
    }
    kept = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    dying: dict[int, list[Any]] = {}
    for var, index in last.items():
        if var not in kept:
            dying.setdefault(index, []).append(var)
    return dying


def affine_path(prog: Program, index: int) -> list[int]:
    """The equations after a reader that scale and shift its channels, in order."""
    eqns = prog.frame.jaxpr.eqns
    (var,) = eqns[index].outvars
    path: list[int] = []
    while len(users := prog.users.get(var, ())) == 1 and users[0] >= 0:
        eqn = eqns[users[0]]
        if len(eqn.outvars) != 1 or shape_of(eqn.outvars[0]) != shape_of(var):
            break
        if eqn.primitive not in SAME and eqn.primitive is not NEG:
            at = eqn.invars.index(var)
            other = eqn.invars[1 - at] if len(eqn.invars) == 2 else None
            if other is None or not is_affine(eqn.primitive, at):
                break
            if prog.frame.read(other).data:
                break
        path.append(users[0])
        (var,) = eqn.outvars
    return path


def through(
    prog: Program, path: Sequence[int], env: Mapping[Any, Any], start: Any, value: Any
) -> Any:
    """A value of the variable `start` after the equations of an affine path."""
    inner = {**env, start: value}
    for index in path:
        eqn = prog.frame.jaxpr.eqns[index]
        for atom in eqn.invars:
            fetch(prog, inner, atom)
        step(prog, index, inner)
        start = eqn.outvars[0]
    return inner[start]


def sum_of_members(
    value: Any, axes: Sequence[Axis], slots: Slots
) -> tuple[np.ndarray, np.ndarray]:
    """Shared channels as the sum of those of one network, and of how many each is.

    Args:
        value: a network's array at full size.
        axes: its axes.
        slots: where the network's channels go.

    Returns:
        `(sum, number)`; `number` has one entry along all axes without channels.
    """
    along = range(len(axes))
    values = np.asarray(value, np.float32)
    held = [i for i in along if not _still(axes[i], slots)]
    ones = np.ones(
        [n if i in held else 1 for i, n in enumerate(values.shape)], np.float32
    )
    return summed(values, axes, slots, held), summed(ones, axes, slots, held)


def _still(axis: Axis, slots: Slots) -> bool:
    return np.array_equal(places(axis, slots), np.arange(axis.size))


def inverse(
    prog: Program,
    path: Sequence[int],
    env: Mapping[Any, Any],
    start: Any,
    wanted: Any,
    like: Any,
) -> Any:
    """What a variable must be so that it is `wanted` after an affine path.

    Channels that the path scales to nearly nothing stay as they are.
    """
    zero, one = (
        through(prog, path, env, start, f(like))
        for f in (jnp.zeros_like, jnp.ones_like)
    )
    scale = one - zero
    small = jnp.abs(scale) < 1e-2 * jnp.abs(scale).max()
    return jnp.where(small, like, (wanted - zero) / jnp.where(small, 1, scale))
