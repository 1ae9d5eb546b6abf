"""Products with a kernel that is put together of several parameters, taken apart.

x @ [A B] is [x @ A  x @ B]: each product is then a reader of its own, of one parameter.
Gates of a recurrence, or queries, keys and values, are often multiplied at once.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from cutjax._compat import Literal, bind, open_jaxpr, primitive, scope_of

JOIN, DOT = primitive("concatenate"), primitive("dot_general")
TRANSPOSE = primitive("transpose")


class Parts(NamedTuple):
    """What is concatenated along an axis, as long as it is not needed as one."""

    values: Sequence[Any]
    axis: int


def taken_apart(jaxpr: Any, number: int) -> Any:
    """A closed jaxpr that computes the same.

    Args:
        jaxpr: of a flat function.
        number: how many of its inputs, the first ones, are parameters.
    """
    inner, consts = open_jaxpr(jaxpr)
    kernels = _kernels(inner, number)
    if not kernels:
        return jaxpr

    def run(*args: Any) -> list[Any]:
        env = dict(zip(inner.invars, args, strict=True))
        env.update(zip(inner.constvars, consts, strict=True))
        parts: dict[Any, Parts] = {}

        def read(atom: Any) -> Any:
            if isinstance(atom, Literal):
                return atom.val
            if atom not in env:
                env[atom] = jax.lax.concatenate(*parts[atom])
            return env[atom]

        for eqn in inner.eqns:
            if not kernels.isdisjoint(eqn.outvars):
                values = [read(var) for var in eqn.invars]
                parts[eqn.outvars[0]] = Parts(values, eqn.params["dimension"])
                continue
            if eqn.primitive is TRANSPOSE and (found := _held(parts, eqn.invars[0])):
                order = eqn.params["permutation"]
                parts[eqn.outvars[0]] = _transposed(found, order)
                continue
            with scope_of(eqn):
                if eqn.primitive is DOT and (at := _apart(eqn, parts)) is not None:
                    outs = [_joined(eqn, at, parts[eqn.invars[at]], read)]
                else:
                    outs = bind(eqn, [read(atom) for atom in eqn.invars], eqn.params)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in inner.outvars]

    return jax.make_jaxpr(run)(*(var.aval for var in inner.invars))


def _kernels(jaxpr: Any, number: int) -> set[Any]:
    """What is concatenated of what depends on parameters alone."""
    fixed, found = set(jaxpr.invars[:number]), set()
    for eqn in jaxpr.eqns:
        if all(not isinstance(a, Literal) and a in fixed for a in eqn.invars):
            fixed.update(eqn.outvars)
            if eqn.primitive is JOIN:
                found.update(eqn.outvars)
    return found


def _held(parts: Mapping[Any, Parts], atom: Any) -> Parts | None:
    return None if isinstance(atom, Literal) else parts.get(atom)


def _transposed(parts: Parts, order: Sequence[int]) -> Parts:
    values = [jax.lax.transpose(value, order) for value in parts.values]
    return Parts(values, order.index(parts.axis))


def _apart(eqn: Any, parts: Mapping[Any, Parts]) -> int | None:
    """Which operand of a product is put together along what the product makes."""
    contracted, batch = eqn.params["dimension_numbers"]
    for at, atom in enumerate(eqn.invars):
        found, taken = _held(parts, atom), (*contracted[at], *batch[at])
        if found and found.axis not in taken:
            return at
    return None


def _joined(eqn: Any, at: int, parts: Parts, read: Any) -> Any:
    contracted, batch = eqn.params["dimension_numbers"]
    taken = {*contracted[at], *batch[at]}
    axis = len(batch[0]) + sum(a not in taken for a in range(parts.axis))
    if at == 1:
        axis += eqn.invars[0].aval.ndim - len(contracted[0]) - len(batch[0])
    made = []
    for value in parts.values:
        args = [value if i == at else read(a) for i, a in enumerate(eqn.invars)]
        made += bind(eqn, args, eqn.params)
    return jax.lax.concatenate(made, axis)
