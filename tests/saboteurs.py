"""For each law, a library broken in one place, which the law must find out.

A saboteur takes the real functions and a net, and returns the functions with one of
them replaced. Each breakage is one that a careless implementation would have.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import laws
import numpy as np
from laws.tools import uneven
from nets import Net, norm, plain


def replace(cj: Any, **broken: Any) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(cj), **broken})


class FakeGraph:
    """The real graph with some attributes told wrongly."""

    def __init__(self, real: Any, **lies: Any):
        self.real = real
        self.__dict__.update(lies)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __getitem__(self, name: str) -> Any:
        return self.real[name]


def lying(cj: Any, lies: Callable[[Any], dict[str, Any]]) -> SimpleNamespace:
    """A library whose graphs lie, and whose other functions read the real graph."""

    def trace(*args: Any, **kw: Any) -> Any:
        real = cj.trace(*args, **kw)
        return FakeGraph(real, **lies(real))

    def honest(fn: Any) -> Any:
        return lambda x, graph, keep: fn(x, graph.real, keep)

    names = ("cut_params", "mask", "shrink")
    return replace(cj, trace=trace, **{n: honest(getattr(cj, n)) for n in names})


def _changed(graph: Any, change: Callable[[Any], dict[str, Any]]) -> tuple[Any, ...]:
    return tuple(dataclasses.replace(g, **change(g)) for g in graph.groups)


def lost_group(cj: Any, net: Net) -> Any:
    """One group is not found."""
    return lying(cj, lambda graph: {"groups": laws.free(graph)[:-1]})


def lost_member(cj: Any, net: Net) -> Any:
    """A group does not say where its last member is."""

    def lies(graph: Any) -> dict[str, Any]:
        return {"groups": _changed(graph, lambda g: {"members": g.members[:-1]})}

    return lying(cj, lies)


def unstable_names(cj: Any, net: Net) -> Any:
    """Names come from a counter."""
    counter = itertools.count()

    def lies(graph: Any) -> dict[str, Any]:
        renamed = _changed(graph, lambda g: {"name": f"group{next(counter)}"})
        return {"groups": renamed}

    return lying(cj, lies)


def _first_cut(fn: Any, good: Any, params: Any) -> Any:
    """Replaces the first leaf of `good` that differs from `params` by `fn(number)`."""
    leaves, treedef = jax.tree.flatten(good)
    for number, full in enumerate(jax.tree.leaves(params)):
        same = leaves[number].shape == full.shape
        if not same or not np.array_equal(leaves[number], full):
            leaves[number] = fn(number)
            break
    return jax.tree.unflatten(treedef, leaves)


def lost_coupling(cj: Any, net: Net) -> Any:
    """The cut forgets one of the leaves that a group reaches."""

    def cut_params(params: Any, graph: Any, keep: Any) -> Any:
        good = cj.cut_params(params, graph, keep)
        return _first_cut(lambda i: jax.tree.leaves(params)[i], good, params)

    return replace(cj, cut_params=cut_params)


def no_order(cj: Any, net: Net) -> Any:
    """Nothing tells the channels of any group apart."""
    return _ordered(cj, None)


def all_in_order(cj: Any, net: Net) -> Any:
    """Something tells the channels of every group apart."""
    return _ordered(cj, "somewhere")


def _ordered(cj: Any, line: str | None) -> Any:
    def trace(*args: Any) -> Any:
        graph = cj.trace(*args)
        groups = (dataclasses.replace(g, ordered=line) for g in graph.groups)
        return dataclasses.replace(graph, groups=tuple(groups))

    return replace(cj, trace=trace)


def shifted_member(cj: Any, net: Net) -> Any:
    """In one leaf the kept channels are off by one."""

    def cut_params(params: Any, graph: Any, keep: Any) -> Any:
        good = cj.cut_params(params, graph, keep)
        rolled = {name: np.roll(kept, 1) for name, kept in keep.items()}
        bad = jax.tree.leaves(cj.cut_params(params, graph, rolled))
        return _first_cut(lambda i: bad[i], good, params)

    return replace(cj, cut_params=cut_params)


def half_mask(cj: Any, net: Net) -> Any:
    """The mask forgets one leaf."""

    def mask(params: Any, graph: Any, keep: Any) -> Any:
        good = cj.mask(params, graph, keep)
        return _first_cut(lambda i: jax.tree.leaves(params)[i], good, params)

    return replace(cj, mask=mask)


def rounding(cj: Any, net: Net) -> Any:
    """The cut goes through arithmetic and is off by one bit."""

    def cut_params(params: Any, graph: Any, keep: Any) -> Any:
        good = cj.cut_params(params, graph, keep)
        return jax.tree.map(lambda x: jnp.nextafter(x, jnp.inf), good)

    return replace(cj, cut_params=cut_params)


def full_count(cj: Any, net: Net) -> Any:
    """A mean over the kept channels divides by the full number of channels."""
    full = net.params["norm"]["scale"].size
    small = functools.partial(norm.swiglu_apply, count=full)
    return replace(cj, shrink=lambda apply, graph, keep: small)


def full_shares(cj: Any, net: Net) -> Any:
    """A gradient inside gives each channel its share of the full number."""
    full = net.params["norm"]["scale"].size
    apply = functools.partial(norm.swiglu_apply, count=full)

    def shrink(fn: Any, graph: Any, keep: Any) -> Any:
        if fn is net.apply:
            return cj.shrink(fn, graph, keep)
        return jax.grad(lambda *args: uneven(apply(*args)))

    return replace(cj, shrink=shrink)


def deaf_to_tasks(cj: Any, net: Net) -> Any:
    """A cut for one task answers them all."""
    return replace(cj, cut=lambda *args, tasks=None: cj.cut(*args))


def _regated(cj: Any, change: Callable[[jax.Array], jax.Array]) -> Any:
    def gate(apply: Any, graph: Any) -> Any:
        gated = cj.gate(apply, graph)
        return lambda gates, *args: gated(jax.tree.map(change, gates), *args)

    return replace(cj, gate=gate)


def leaky_gate(cj: Any, net: Net) -> Any:
    """A closed gate lets a hundredth through."""
    return _regated(cj, lambda g: 0.01 + 0.99 * g)


def gate_twice(cj: Any, net: Net) -> Any:
    """A channel passes its gate twice; with gates of 0 and 1 nobody sees it."""
    return _regated(cj, lambda g: g * g)


def half_gradient(cj: Any, net: Net) -> Any:
    """Half of the gradient is stopped on its way."""
    return _regated(cj, lambda g: (g + jax.lax.stop_gradient(g)) / 2)


def _miscounted(cj: Any, lost: dict[str, int]) -> Any:
    def lies(graph: Any) -> dict[str, Any]:
        def cost(*args: Any, **kw: Any) -> Any:
            true = graph.cost(*args, **kw)
            told = {n: getattr(true, n) - lost.get(n, 0) for n in ("params", "flops")}
            return SimpleNamespace(**told)

        return {"cost": cost}

    return lying(cj, lies)


def lost_term(cj: Any, net: Net) -> Any:
    """The cost leaves out the last layer's contraction."""
    head = net.params["last"]["kernel"]
    return _miscounted(cj, {"flops": 2 * net.inputs[0].shape[0] * head.shape[-1]})


def lost_bias(cj: Any, net: Net) -> Any:
    """The cost counts kernels and forgets a bias."""
    return _miscounted(cj, {"params": net.params["last"]["bias"].size})


def fresh_jit(cj: Any, net: Net) -> Any:
    """Every call compiles anew."""
    return replace(cj, jit=lambda fn: lambda *args: jax.jit(lambda *a: fn(*a))(*args))


def baked_batch(cj: Any, net: Net) -> Any:
    """The batch size of the trace is baked into the small function."""

    def shrink(apply: Any, graph: Any, keep: Any) -> Any:
        small = cj.shrink(apply, graph, keep)
        return lambda params, x: small(params, x[: net.inputs[0].shape[0]])

    return replace(cj, shrink=shrink)


def lost_rule(cj: Any, net: Net) -> Any:
    """A custom_jvp is inlined, and with it goes the user's derivative."""

    def small(p: Any, x: jax.Array) -> jax.Array:
        return plain.dense(p["last"], jax.nn.relu(plain.dense(p["first"], x)))

    return replace(cj, shrink=lambda apply, graph, keep: small)


def callback(cj: Any, net: Net) -> Any:
    """The small function leaves JAX: right numbers, but no vmap, no grad, no trace."""

    def shrink(apply: Any, graph: Any, keep: Any) -> Any:
        small = jax.jit(cj.shrink(apply, graph, keep))

        def opaque(*args: Any) -> Any:
            out = jax.eval_shape(small, *args)
            return jax.pure_callback(small, out, *args)

        return opaque

    return replace(cj, shrink=shrink)


def masquerade(cj: Any, net: Net) -> Any:
    """The small function pads its parameters with zeros and runs the full model."""
    like = jax.tree.map(lambda x: jnp.arange(x.size).reshape(x.shape), net.params)

    def shrink(apply: Any, graph: Any, keep: Any) -> Any:
        index = cj.cut_params(like, graph, keep)

        def pad(at: jax.Array, small: jax.Array, full: jax.Array) -> jax.Array:
            flat = jnp.zeros(full.size, small.dtype).at[at].set(small)
            return flat.reshape(full.shape)

        def padded(params: Any, *inputs: Any) -> Any:
            return apply(jax.tree.map(pad, index, params, like), *inputs)

        return padded

    return replace(cj, shrink=shrink)


PRIMES = {13: 8, 17: 10, 19: 12, 23: 15}
"""Full and kept widths of the net `primes`; no kept one is a multiple of these."""

EVERY_OTHER = {
    "first/kernel:1": np.arange(7) % 2 == 0,
    "middle/kernel:1": np.arange(6) > 1,
}
"""A keep of the net `mlp`."""

SABOTEURS: list[
    tuple[Callable[..., Any], Callable[..., None], str, tuple[Any, ...]]
] = [
    (lost_group, laws.check_groups, "mlp", ()),
    (lost_member, laws.check_members, "vgg", ()),
    (unstable_names, laws.check_graph_stable, "mlp", ("jit",)),
    (lost_coupling, laws.check_permutation, "vgg", (0,)),
    (no_order, laws.check_permutation, "llama", (0,)),
    (all_in_order, laws.check_permutation, "mlp", (0,)),
    (lost_coupling, laws.check_shrink_equals_mask, "vgg", (0,)),
    (shifted_member, laws.check_shrink_equals_mask, "mlp", (0,)),
    (shifted_member, laws.check_shrink_equals_mask, "densenet", (0,)),
    (full_count, laws.check_shrink_equals_narrow, "swiglu", (0,)),
    (shifted_member, laws.check_any_keep, "mlp", (EVERY_OTHER,)),
    (lost_bias, laws.check_any_keep, "mlp", (EVERY_OTHER,)),
    (half_mask, laws.check_mask, "unet", (0,)),
    (rounding, laws.check_full_keep, "mlp", ()),
    (deaf_to_tasks, laws.check_tasks, "mlp_tasks", (0,)),
    (leaky_gate, laws.check_gates, "mlp", (0,)),
    (half_gradient, laws.check_gate_gradient, "mlp", (0,)),
    (gate_twice, laws.check_gate_scale, "vgg", ()),
    (lost_term, laws.check_cost, "mlp", (0,)),
    (lost_bias, laws.check_cost, "mlp", (None,)),
    (fresh_jit, laws.check_compiles_once, "mlp", (0,)),
    (baked_batch, laws.check_other_batch, "mlp", (0,)),
    (lost_rule, laws.check_grad, "custom_jvp", (0,)),
    (full_shares, laws.check_inner_grad, "swiglu", (0,)),
    (callback, laws.check_vmap, "mlp", (0,)),
    (callback, laws.check_second_cut, "mlp", (0,)),
    (masquerade, laws.check_second_cut, "vgg", (0,)),
    (masquerade, laws.check_train, "vgg", (0,)),
    (masquerade, laws.check_program, "primes", (PRIMES,)),
]
