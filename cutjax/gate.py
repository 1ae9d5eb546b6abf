"""Gates: every contraction over a group reads its channels times the group's gate.

With all gates one the function is unchanged, and the derivative of a loss with respect
to a gate is the sum over positions of activation times gradient of that channel where
it is read: exactly the first-order change of the loss when the channel is scaled away.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from cutjax.dims import Fixed, Leaf, fold
from cutjax.errors import KeepError
from cutjax.graph import Graph
from cutjax.resize import Kept, Reader, Run, freeze
from cutjax.shrink import rewrite
from cutjax.unify import Var, leaf_vars

Gates = Mapping[str, Float[Array, "_"]]


def ones(graph: Graph) -> dict[str, Float[Array, "_"]]:
    """Gates that change nothing: a vector of ones per free group."""
    return {g.name: jnp.ones(g.size, jnp.float32) for g in graph.free}


def gate(apply: Callable[..., Any], graph: Graph) -> Callable[..., Any]:
    """The function with a gate per channel.

    Args:
        apply: the full function.
        graph: its graph.

    Returns:
        `gated(gates, params, *inputs)`; `gates` maps names of groups to f32[n], groups
        not named are not gated. A channel is gated where it is summed over: at dense
        layers, convolutions, attention products and plain sums. In a mean it is gated
        only where nothing but means reads the group (members of an ensemble), which
        then are weighted by the gates; means that normalise are not gated. Where both
        operands depend on data, one of them is gated.

    Raises:
        KeepError: when called, for an unknown group or a gate of the wrong size.

    Example:
        >>> import jax, jax.numpy as jnp, cutjax as cj
        >>> apply = lambda w, x: x @ w["a"] @ w["b"]
        >>> w = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))}
        >>> graph = cj.trace(apply, w, jnp.ones((1, 2)))
        >>> gated = cj.gate(apply, graph)
        >>> gated({"a:1": jnp.array([1.0, 0.0, 2.0])}, w, jnp.ones((1, 2))).tolist()
        [[6.0]]
    """

    def gated(gates: Gates, params: Any, *inputs: Any) -> Any:
        _check(gates, graph)

        def hook(kept: Kept, reader: Reader, run: Run, args: list[Any]) -> list[Any]:
            args = list(args)
            args[reader.site.at] = gated_operand(kept, reader, args, gates)
            return run(args)

        return rewrite(apply, graph, {}, hook=hook)(params, *inputs)

    return gated


def gated_operand(kept: Kept, reader: Reader, args: Sequence[Any], gates: Gates) -> Any:
    """The operand that a reader sums over, its channels times their gates."""
    site, operand = reader.site, args[reader.site.at]
    mean = site.summed is not None and site.summed.mean
    inner = {v for d in site.inner for v in leaf_vars(d)}
    for axis in site.axes:
        var = reader.ins[site.at].dims[axis]
        found = {v: kept.name(v) or "" for v in leaf_vars(var) if v in inner}
        names = {
            v: name
            for v, name in found.items()
            if name in gates and (not mean or v in site.alone)
        }
        if names:
            shape = [1] * operand.ndim
            shape[axis] = -1
            vector = _vector(var, names, gates)
            vector = _weights(vector, site.summed) if mean else vector
            operand = operand * vector.reshape(shape).astype(operand.dtype)
    return operand


def _weights(gates: Float[Array, "n"], summed: Any) -> Float[Array, "n"]:
    """Gates over their mean: what is divided by the full count is a weighted mean.

    An unbiased variance divides by one less, shared among all axes that it counts.
    """
    full = len(gates)
    less = summed.less * full / math.prod(d.size for d in summed.dims)
    left = gates.sum() - less
    return gates * ((full - less) / jnp.where(left > 0, left, 1))


def _vector(var: Var, names: Mapping[Var, str], gates: Gates) -> Float[Array, "_"]:
    """Gates over the positions of an axis; ones for what is not gated."""

    def name(v: Var):
        return Leaf(names[v], v.size) if v in names else Fixed(v.size)

    return fold(freeze(var, name), lambda group, _: gates[group], jnp.ones)


def _check(gates: Gates, graph: Graph) -> None:
    for name, values in gates.items():
        size = graph[name].size
        if jnp.shape(values) != (size,):
            raise KeepError(
                f"the gate of {name!r} has shape {jnp.shape(values)}, not ({size},)"
            )
