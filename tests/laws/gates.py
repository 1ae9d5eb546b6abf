"""Laws of the gates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from nets import Net

from .tools import (
    attempt,
    close,
    free,
    graph_of,
    leaves_of,
    positions,
    random_keep,
    run,
    run_full,
    uneven,
)


def check_gates(cj: Any, net: Net, seed: int) -> None:
    """Gates of one are the identity; gates of zero and one are the mask."""
    graph = graph_of(cj, net)
    gated = attempt(cj.gate, net.apply, graph)
    ones = {group.name: jnp.ones(group.size) for group in free(graph)}
    close(run(gated, ones, net.params, *net.inputs), run_full(net), 2e-6)
    keep = random_keep(graph, seed, exact=net.exact)
    masked = attempt(cj.mask, net.params, graph, keep)
    gates = ones | {name: jnp.asarray(k, jnp.float32) for name, k in keep.items()}
    got = run(gated, gates, net.params, *net.inputs)
    close(got, run(net.apply, masked, *net.inputs))


def check_gate_gradient(cj: Any, net: Net, seed: int) -> None:
    """In float64, the derivative along a random direction is the finite difference."""
    graph = graph_of(cj, net)
    gated = attempt(cj.gate, net.apply, graph)
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        params, inputs = jax.tree.map(_double, (net.params, net.inputs))
        ones = {g.name: jnp.ones(g.size, jnp.float64) for g in free(graph)}
        along = {k: jnp.asarray(rng.normal(size=v.shape)) for k, v in ones.items()}

        def loss(gates: Any) -> jax.Array:
            return uneven(gated(gates, params, *inputs))

        def both(step: Any) -> Any:
            slope = jax.jvp(loss, (ones,), (along,))[1]
            up, down = (
                loss(jax.tree.map(lambda g, v, h=h: g + h * v, ones, along))
                for h in (step, -step)
            )
            return slope, (up - down) / (2 * step)

        slope, difference = run(both, jnp.asarray(1e-6, jnp.float64))
        close(slope, difference, 1e-6)


def _double(x: Any) -> jax.Array:
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


def check_gate_scale(cj: Any, net: Net) -> None:
    """A gate's gradient is that of the kernels which read it, times these kernels.

    A gate that acts twice is its own finite difference; here it is found out.
    """
    graph = graph_of(cj, net)
    gated = attempt(cj.gate, net.apply, graph)
    ones = {group.name: jnp.ones(group.size) for group in free(graph)}

    def loss(gates: Any, params: Any) -> jax.Array:
        return uneven(gated(gates, params, *net.inputs))

    of_gates, of_params = run(jax.grad(loss, argnums=(0, 1)), ones, net.params)
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
