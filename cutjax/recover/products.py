"""Inner products of two results, such as queries and keys, over a width that is cut.

No kernel reads that width, so nothing can be refitted where it is read. But what is
made for it can: beside the queries that stay, other keys than the parent's come closest
to the parent's products. They are linear in the parent's keys, k M with
M = C_qs (C_ss + lambda I)^-1, where C_qs are second moments of the queries with those
that stay, and they become what the reader that makes the keys is fitted to.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from cutjax._compat import primitive
from cutjax.recover.follow import ADD, DIV, MUL, evaluated
from cutjax.recover.program import MOVES, Program, needs
from cutjax.rules.base import shape_of
from cutjax.unify import find, leaf_vars

DOT = primitive("dot_general")
RIDGE = 1e-4


class Inner(NamedTuple):
    """A product that a reader's result enters, over an axis of which a part goes.

    `index`: of its equation; `at`: which of its operands the reader makes. `stays`:
    what stays of the axis. `heads`: batch axes of the product that channels lie along;
    over all others one M serves.
    """

    index: int
    at: int
    stays: Bool[np.ndarray, " width"]
    heads: tuple[bool, ...]


def inner_of(prog: Program, stop: int) -> Inner | None:
    """The product that a reader can make up for; None if there is none.

    Of two readers that make its operands it is the later one, which knows the other's.

    Args:
        prog: the program.
        stop: equation of the reader.
    """
    for index, at in _products(prog, stop):
        eqn = prog.frame.jaxpr.eqns[index]
        contracted, batch = eqn.params["dimension_numbers"]
        before = needs(prog, [eqn.invars[1 - at]])
        if len(contracted[at]) != 1 or any(
            i > stop and i in prog.frame.sites for i in before
        ):
            continue
        dims = prog.frame.read(eqn.invars[at]).dims
        stays = prog.evaluator.k.mask(dims[contracted[at][0]])
        if stays.any() and not stays.all():
            channels = _channels(prog)
            heads = (any(v in channels for v in leaf_vars(dims[a])) for a in batch[at])
            return Inner(index, at, stays, tuple(heads))
    return None


def _products(prog: Program, stop: int) -> Iterator[tuple[int, int]]:
    """Products of data that a result enters, moved, scaled as a whole, shifted."""
    eqns = prog.frame.jaxpr.eqns
    todo = list(eqns[stop].outvars)
    while todo:
        var = todo.pop()
        for index in (i for i in prog.users.get(var, ()) if i >= 0):
            eqn = eqns[index]
            at = eqn.invars.index(var)
            if eqn.primitive is DOT and prog.frame.read(eqn.invars[1 - at]).data:
                yield index, at
            elif eqn.primitive in MOVES or _affine(prog, eqn, at):
                todo += eqn.outvars


def _affine(prog: Program, eqn: Any, at: int) -> bool:
    if len(eqn.invars) != 2 or prog.frame.read(eqn.invars[1 - at]).data:
        return False
    if eqn.primitive is MUL or (eqn.primitive is DIV and at == 0):
        return int(np.prod(shape_of(eqn.invars[1 - at]))) == 1
    return eqn.primitive in ADD


def _channels(prog: Program) -> set[Any]:
    """Variables that some parameter has an axis of."""
    params = prog.frame.jaxpr.invars[: len(prog.paths)]
    dims = (d for var in params for d in prog.frame.values[var].dims)
    return {find(v) for d in dims for v in leaf_vars(d)}


def wanted(
    prog: Program, inner: Inner, parent: Mapping[Any, Any], stop: int
) -> Float[Array, "..."]:
    """What the parent's reader should have made, where its channels stay.

    Args:
        prog: the program.
        inner: the product.
        parent: the parent's values so far, the reader's result among them.
        stop: equation of the reader.
    """
    eqns = prog.frame.jaxpr.eqns
    (out,), eqn = eqns[stop].outvars, eqns[inner.index]

    def operands(made: Any) -> tuple[Any, Any]:
        env = evaluated(prog, {**parent, out: made}, eqn.invars)
        return env[eqn.invars[inner.at]], env[eqn.invars[1 - inner.at]]

    # The operand is a moved, scaled and shifted part of what is made: f^T f has the
    # square of the factor on its diagonal, and zeros where nothing is taken.
    made = parent[out]
    (mine, other), back = jax.vjp(operands, made)
    _, (factor, _) = jax.jvp(operands, (made,), (jnp.ones_like(made),))
    change = _change(inner, eqn.params["dimension_numbers"], mine, other)
    (moved,) = back((change.astype(mine.dtype), jnp.zeros_like(other)))
    (square,) = back((factor, jnp.zeros_like(other)))
    (shared,) = back((jnp.zeros_like(mine), jnp.ones_like(other)))
    # Channels that serve both sides, as where keys are queries, stay as they are.
    own = (square > 0) & (shared == 0)
    return made + jnp.where(own, moved / jnp.where(own, square, 1), 0)


def _change(
    inner: Inner, numbers: Any, mine: Array, other: Array
) -> Float[Array, "..."]:
    """By how much an operand should differ; nothing where its channels go."""
    (mine_at, order), (other_at, _) = (
        _rows(inner, numbers, operand, value)
        for operand, value in ((inner.at, mine), (1 - inner.at, other))
    )
    with jax.default_matmul_precision("highest"):
        seen = jnp.einsum("...pw,...pv->...wv", other_at, other_at)
        (stays,) = np.nonzero(inner.stays)
        left = seen[..., stays[:, None], stays]
        size = jnp.trace(left, axis1=-2, axis2=-1)[..., None, None] / len(stays)
        ridge = (RIDGE * size + 1e-30) * jnp.eye(len(stays))
        # With few rows it stays a selection.
        right = seen[..., stays, :] + ridge @ np.eye(len(inner.stays))[stays]
        mixing = jnp.linalg.solve(left + ridge, right)
        better = jnp.einsum("...pw,...sw->...ps", mine_at, mixing)
    flat = jnp.zeros_like(mine_at).at[..., stays].set(better - mine_at[..., stays])
    moved = flat.reshape([mine.shape[a] for a in order])
    return moved.transpose(np.argsort(order))


def _rows(
    inner: Inner, numbers: Any, operand: int, value: Array
) -> tuple[Float[Array, "... p w"], tuple[int, ...]]:
    """An operand as rows per head; and the order its axes were brought to."""
    contracted, batch = (axes[operand] for axes in numbers)
    heads = [a for a, is_head in zip(batch, inner.heads, strict=True) if is_head]
    rest = [a for a in range(value.ndim) if a not in (*heads, *contracted)]
    order = (*heads, *rest, *contracted)
    moved = value.transpose(order).astype(jnp.float32)
    return moved.reshape(*moved.shape[: len(heads)], -1, moved.shape[-1]), order
