"""Laws of the gates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from nets import Net

from .tools import (
    attempt,
    case_of,
    close,
    free,
    graph_of,
    leaves_of,
    positions,
    run,
    run_full,
    uneven,
)


def check_gates(cj: Any, net: Net, seed: int) -> None:
    """Gates of one are the identity; gates of zero and one are the mask."""
    case = case_of(cj, net, seed, exact=net.exact)
    gated = attempt(cj.gate, net.apply, case.graph)
    ones = _ones(case.graph)
    close(run(gated, ones, net.params, *net.inputs), run_full(net), 2e-6)
    gates = ones | {name: jnp.asarray(k, "float32") for name, k in case.keep.items()}
    close(run(gated, gates, net.params, *net.inputs), case.masked_out)


def check_gate_gradient(cj: Any, net: Net, seed: int) -> None:
    """In float64, the derivative along a random direction is the finite difference."""
    graph = graph_of(cj, net)
    gated = attempt(cj.gate, net.apply, graph)
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        params, inputs, ones = jax.tree.map(
            _double, (net.params, net.inputs, _ones(graph))
        )
        along = {k: jnp.asarray(rng.normal(size=v.shape)) for k, v in ones.items()}

        def loss(step: jax.Array, params: Any, *inputs: Any) -> jax.Array:
            gates = jax.tree.map(lambda g, v: g + step * v, ones, along)
            return uneven(gated(gates, params, *inputs))

        h, rest = jnp.asarray(1e-6, jnp.float64), (params, *inputs)
        difference = (run(loss, h, *rest) - run(loss, -h, *rest)) / (2 * h)
        close(run(jax.jacfwd(loss), h * 0, *rest), difference, 1e-6)


def _ones(graph: Any) -> dict[str, jax.Array]:
    return {group.name: jnp.ones(group.size, "float32") for group in free(graph)}


def _double(x: Any) -> jax.Array:
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


def check_gate_scale(cj: Any, net: Net) -> None:
    """A gate's gradient is that of the kernels which read it, times these kernels.

    A gate that acts twice is its own finite difference; here it is found out.
    """
    graph = graph_of(cj, net)
    gated = attempt(cj.gate, net.apply, graph)

    def loss(gates: Any, params: Any, *inputs: Any) -> jax.Array:
        return uneven(gated(gates, params, *inputs))

    both = jax.grad(loss, argnums=(0, 1))
    of_gates, of_params = run(both, _ones(graph), net.params, *net.inputs)
    leaves, grads = jax.tree.leaves(net.params), jax.tree.leaves(of_params)
    paths = [path.split("/") for path, _ in leaves_of(net.params)]
    for group in free(graph):
        want = np.zeros(group.size)
        for (number, axis), where in positions(cj, net, group.name).items():
            if "kernel" in paths[number][-2:] and axis == leaves[number].ndim - 2:
                product = np.asarray(leaves[number] * grads[number])
                others = tuple(i for i in range(product.ndim) if i != axis)
                want += product.sum(others)[where].sum(1)
        close(of_gates[group.name], want, 1e-4)
