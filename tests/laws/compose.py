"""Laws of composition: compile once, grad, vmap, a second cut, train mode."""

from __future__ import annotations

import re
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
    random_keep,
    run,
    uneven,
)


def check_compiles_once(cj: Any, net: Net, seed: int) -> None:
    """Two batches, one trace; a third of another size works too."""
    graph = graph_of(cj, net)
    keep = random_keep(graph, seed)
    params = attempt(cj.cut_params, net.params, graph, keep)
    traced = []

    def counted(params: Any, *inputs: Any) -> Any:
        traced.append(1)
        return net.apply(params, *inputs)

    small = cj.jit(attempt(cj.shrink, counted, graph, keep))
    attempt(small, params, *net.inputs)
    first = len(traced)
    attempt(small, params, *(x[::-1] for x in net.inputs))
    assert first > 0, "the function was never traced"
    assert len(traced) == first, f"traced {first} times, then {len(traced)}"


def check_other_batch(cj: Any, net: Net, seed: int) -> None:
    """The same small function takes another batch size."""
    graph = graph_of(cj, net)
    keep = random_keep(graph, seed, exact=net.exact)
    inputs = tuple(jnp.concatenate([x, x[::-1], x[:1]]) for x in net.inputs)
    small = attempt(cj.shrink, net.apply, graph, keep)
    got = run(small, attempt(cj.cut_params, net.params, graph, keep), *inputs)
    masked = attempt(cj.mask, net.params, graph, keep)
    close(got, run(net.apply, masked, *inputs), 2e-5)


def check_grad(cj: Any, net: Net, seed: int) -> None:
    """The gradient of the small function is the masked gradient, cut."""
    graph = graph_of(cj, net)
    keep = random_keep(graph, seed, exact=net.exact)
    masked = attempt(cj.mask, net.params, graph, keep)
    small = attempt(cj.shrink, net.apply, graph, keep)

    def grad(fn: Any) -> Any:
        return jax.grad(lambda p: uneven(fn(p, *net.inputs)))

    got = run(grad(small), attempt(cj.cut_params, net.params, graph, keep))
    want = attempt(cj.cut_params, run(grad(net.apply), masked), graph, keep)
    close(got, want, 1e-4)


def check_vmap(cj: Any, net: Net, seed: int) -> None:
    """vmap over a stack of batches, and over a stack of parameters."""
    graph = graph_of(cj, net)
    keep = random_keep(graph, seed)
    params = attempt(cj.cut_params, net.params, graph, keep)
    small = attempt(cj.shrink, net.apply, graph, keep)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x * 0.5]), params)
    inputs = tuple(jnp.stack([x, x[::-1]]) for x in net.inputs)
    got = run(jax.vmap(small), stacked, *inputs)
    for i in range(2):
        one_params, one_inputs, one = jax.tree.map(
            lambda x, i=i: x[i], (stacked, inputs, got)
        )
        close(one, run(small, one_params, *one_inputs), 2e-5)


def check_second_cut(cj: Any, net: Net, seed: int) -> None:
    """A small function is a function: it traces to the same groups and cuts again."""
    graph = graph_of(cj, net)
    keep = random_keep(graph, seed, least=2, exact=net.exact)
    params = attempt(cj.cut_params, net.params, graph, keep)
    small = attempt(cj.shrink, net.apply, graph, keep)
    again = attempt(cj.trace, small, params, *net.inputs)
    want = {g.name: int(keep.get(g.name, np.ones(g.size)).sum()) for g in free(graph)}
    assert {g.name: g.size for g in free(again)} == want, f"{again}\nafter\n{graph}"
    second = random_keep(again, seed + 1, exact=net.exact)
    masked = attempt(cj.mask, params, again, second)
    smaller = attempt(cj.shrink, small, again, second)
    got = run(smaller, attempt(cj.cut_params, params, again, second), *net.inputs)
    close(got, run(small, masked, *net.inputs))


def check_train(cj: Any, net: Net, seed: int) -> None:
    """Train mode shrinks by the graph of eval mode; its new state comes out small."""
    graph = graph_of(cj, net)
    keep = random_keep(graph, seed)
    params = attempt(cj.cut_params, net.params, graph, keep)
    masked = attempt(cj.mask, net.params, graph, keep)
    small = attempt(cj.shrink, net.train_apply, graph, keep)
    got, state = run(small, params, *net.train_inputs)
    want, full = run(net.train_apply, masked, *net.train_inputs)
    expected = attempt(cj.cut_params, {**masked, **full}, graph, keep)
    close(state, {name: expected[name] for name in full}, 2e-5)
    if net.train_exact:
        close(got, want, 1e-4)


SHAPE = re.compile(r"\b(?:pred|[a-z]+\d+)\[([\d,]+)\]")


def check_program(cj: Any, net: Net, widths: dict[int, int]) -> None:
    """The compiled program names no full size, nor a multiple of one (`widths`)."""
    graph = graph_of(cj, net)
    keep = {g.name: np.arange(g.size) < widths[g.size] for g in free(graph)}
    params = attempt(cj.cut_params, net.params, graph, keep)
    small = jax.jit(attempt(cj.shrink, net.apply, graph, keep))
    text = attempt(small.lower, params, *net.inputs).compile().as_text()
    dims = {int(d) for found in SHAPE.findall(text) for d in found.split(",")}
    assert widths[13] in dims, "no kept width found: is the text still HLO?"
    full = {d for d in dims if any(d % prime == 0 for prime in widths)}
    assert not full, f"full sizes {full} in the compiled program"
