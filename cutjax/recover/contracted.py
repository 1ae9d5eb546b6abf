"""Sums of products with a parameter, `(h * w).sum(-1)`, as contractions."""

from collections import Counter
from collections.abc import Container, Sequence
from typing import Any

import jax

from cutjax._compat import Literal, open_jaxpr, primitive
from cutjax.recover.replaced import Read, replaced

MUL, SUM = primitive("mul"), primitive("reduce_sum")


def contracted(jaxpr: Any, number: int) -> Any:
    """A closed jaxpr that computes the same, by products of matrices.

    Args:
        jaxpr: of a flat function.
        number: how many of its inputs, the first ones, are parameters.
    """
    found = _products(open_jaxpr(jaxpr)[0], number)
    if not found:
        return jaxpr

    def instead(eqn: Any, read: Read) -> Sequence[Any] | None:
        if eqn.primitive is MUL and eqn.outvars[0] in found:
            return ()
        if eqn.primitive is SUM and eqn.invars[0] in found:
            data, kernel = map(read, found[eqn.invars[0]])
            return [_product(data, kernel, [*map(int, eqn.params["axes"])])]
        return None

    return replaced(jaxpr, instead)


def _products(jaxpr: Any, number: int) -> dict[Any, tuple[Any, Any]]:
    """Data and kernel by their product, where that is only summed.

    An axis that both have and that stays is no contraction: as of a diagonal.
    """
    fixed, params = {*jaxpr.constvars}, {*jaxpr.invars[:number]}
    made: dict[Any, tuple[Any, Any]] = {}
    found: dict[Any, tuple[Any, Any]] = {}
    for eqn in jaxpr.eqns:
        named = {a for a in eqn.invars if not isinstance(a, Literal)}
        if named <= fixed | params:
            (params if named & params else fixed).update(eqn.outvars)
        elif eqn.primitive is MUL and len(named) == 2 and named & params:
            data, kernel = sorted(eqn.invars, key=params.__contains__)
            made[eqn.outvars[0]] = data, kernel
        elif eqn.primitive is SUM and eqn.invars[0] in made:
            data, kernel = made[eqn.invars[0]]
            if _apart(data.aval.shape, kernel.aval.shape, {*eqn.params["axes"]}):
                found[eqn.invars[0]] = data, kernel
    atoms = [*(a for eqn in jaxpr.eqns for a in eqn.invars), *jaxpr.outvars]
    uses = Counter(a for a in atoms if not isinstance(a, Literal))
    return {var: pair for var, pair in found.items() if uses[var] == 1}


def _apart(data: Sequence[int], kernel: Sequence[int], axes: Container[Any]) -> bool:
    sizes = enumerate(zip(data, kernel, strict=False))
    return len(data) == len(kernel) and all(
        d == k if axis in axes else 1 in (d, k) for axis, (d, k) in sizes
    )


def _product(data: Any, kernel: Any, axes: Sequence[int]) -> Any:
    """What the sum over some axes of a product is."""
    rest = [a for a in range(data.ndim) if a not in axes]
    wide = [a for a in rest if kernel.shape[a] > 1]
    rows = [a for a in rest if a not in wide]
    data, kernel = jax.lax.squeeze(data, wide), jax.lax.squeeze(kernel, rows)
    left = [a - sum(b < a for b in wide) for a in axes]
    right = [a - sum(b < a for b in rows) for a in axes]
    made = jax.lax.dot_general(
        *(data, kernel, ((left, right), ((), ()))),
        precision=jax.lax.Precision.HIGHEST,
    )
    order = [*rows, *wide]
    return jax.lax.transpose(made, [order.index(a) for a in rest])
