"""Products with a kernel that is put together of several parameters, taken apart.

x @ [A B] is [x @ A  x @ B]: each product is then a reader of its own, of one parameter.
Gates of a recurrence, or queries, keys and values, are often multiplied at once. A bias
put together likewise is added to each, as long as nothing asks for the whole.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from cutjax._compat import Literal, bind, open_jaxpr, primitive
from cutjax.recover.replaced import Read, replaced

JOIN, DOT = primitive("concatenate"), primitive("dot_general")
TRANSPOSE, SPLIT = primitive("transpose"), primitive("split")
SPREAD, RESHAPE = primitive("broadcast_in_dim"), primitive("reshape")
CONVERT, ADD = primitive("convert_element_type"), primitive("add")


class Parts(NamedTuple):
    """What is concatenated along an axis, as long as it is not needed as one."""

    values: Sequence[Any]
    axis: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the parts, along the axis."""
        return tuple(value.shape[self.axis] for value in self.values)


def taken_apart(jaxpr: Any, number: int) -> Any:
    """A closed jaxpr that computes the same.

    Args:
        jaxpr: of a flat function.
        number: how many of its inputs, the first ones, are parameters.
    """
    kernels = _kernels(open_jaxpr(jaxpr)[0], number)
    if not kernels:
        return jaxpr
    parts: dict[Any, Parts] = {}

    def instead(eqn: Any, read: Read) -> Sequence[Any] | None:
        if not kernels.isdisjoint(eqn.outvars):
            values = [read(var) for var in eqn.invars]
            found: Any = Parts(values, eqn.params["dimension"])
        else:
            held = [_held(parts, atom) for atom in eqn.invars]
            found = _apart(eqn, held, read) if any(held) else None
        if isinstance(found, Parts):
            parts[eqn.outvars[0]] = found
            return ()
        return found

    return replaced(jaxpr, instead, lambda atom: jax.lax.concatenate(*parts[atom]))


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


def _apart(eqn: Any, held: Sequence[Any], read: Read) -> Parts | Sequence[Any] | None:
    """What an equation makes of parts: parts, or each of them; None if of the whole."""
    first = held[0]
    if eqn.primitive is DOT:
        return _product(eqn, held, read)
    if eqn.primitive is ADD:
        same = all(held) and len({(h.axis, h.sizes) for h in held}) == 1
        each = zip(*(h.values for h in held), strict=True) if same else ()
        return Parts([a + b for a, b in each], first.axis) if same else None
    if first is None:
        return None
    if eqn.primitive is SPLIT:
        alike = (first.axis, first.sizes) == (eqn.params["axis"], eqn.params["sizes"])
        return first.values if alike else None
    if eqn.primitive is CONVERT:
        return Parts([bind(eqn, [v], eqn.params)[0] for v in first.values], first.axis)
    if eqn.primitive is TRANSPOSE:
        order = eqn.params["permutation"]
        moved = [jax.lax.transpose(value, order) for value in first.values]
        return Parts(moved, order.index(first.axis))
    return _spread(eqn, first)


def _spread(eqn: Any, parts: Parts) -> Parts | None:
    """Parts with other axes around the one that they are concatenated along."""
    shape, before = eqn.outvars[0].aval.shape, eqn.invars[0].aval.shape
    if eqn.primitive is SPREAD:
        axes = eqn.params["broadcast_dimensions"]
    elif eqn.primitive is RESHAPE and shape == (1,) * (len(shape) - 1) + before:
        axes = (len(shape) - 1,)
    else:
        return None
    axis, values = axes[parts.axis], []
    for size, value in zip(parts.sizes, parts.values, strict=True):
        own = (*shape[:axis], size, *shape[axis + 1 :])
        values.append(jax.lax.broadcast_in_dim(value, own, axes))
    return Parts(values, axis)


def _product(eqn: Any, held: Sequence[Any], read: Read) -> Parts | None:
    """A product of which one operand is put together along what the product makes."""
    contracted, batch = eqn.params["dimension_numbers"]
    taken = [{*contracted[at], *batch[at]} for at in (0, 1)]
    at = next((i for i in (0, 1) if held[i] and held[i].axis not in taken[i]), None)
    if at is None:
        return None
    axis = len(batch[0]) + sum(a not in taken[at] for a in range(held[at].axis))
    if at == 1:
        axis += eqn.invars[0].aval.ndim - len(taken[0])
    other, made = read(eqn.invars[1 - at]), []
    for value in held[at].values:
        args = [value, other] if at == 0 else [other, value]
        made += bind(eqn, args, eqn.params)
    return Parts(made, axis)
