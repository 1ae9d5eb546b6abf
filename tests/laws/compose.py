"""Laws of composition: compile once, grad, also inside, vmap, a second cut, train."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from nets import Net

from .tools import (
    attempt,
    case_of,
    close,
    cut_tree,
    free,
    graph_of,
    random_keep,
    rounded,
    run,
    uneven,
)


def check_compiles_once(cj: Any, net: Net, seed: int) -> None:
    """Two batches, one trace."""
    case = case_of(cj, net, seed)
    traced = []

    def counted(params: Any, *inputs: Any) -> Any:
        traced.append(1)
        return net.apply(params, *inputs)

    small = cj.jit(attempt(cj.shrink, counted, case.graph, case.keep))
    attempt(small, case.params, *net.inputs)
    first = len(traced)
    attempt(small, case.params, *(x[::-1] for x in net.inputs))
    assert first > 0, "the function was never traced"
    assert len(traced) == first, f"traced {first} times, then {len(traced)}"


def check_other_batch(cj: Any, net: Net, seed: int) -> None:
    """The same small function takes another batch size."""
    case = case_of(cj, net, seed, exact=net.exact)
    inputs = tuple(jnp.concatenate([x, x[::-1], x[:1]]) for x in net.inputs)
    want = run(net.apply, case.masked, *inputs)
    close(run(case.small, case.params, *inputs), want, 2e-5)


def check_grad(cj: Any, net: Net, seed: int) -> None:
    """The gradient of the small function is the masked gradient, cut."""
    case = case_of(cj, net, seed, exact=net.exact)

    def grad(fn: Any) -> Any:
        return jax.grad(lambda params, *inputs: uneven(fn(params, *inputs)))

    masked = jax.jit(grad(net.apply))
    want, again = (
        cut_tree(cj, attempt(masked, params, *net.inputs), case.graph, case.keep)
        for params in (case.masked, rounded(case.masked))
    )
    close(run(grad(case.small), case.params, *net.inputs), want, 1e-4, again)


def check_inner_grad(cj: Any, net: Net, seed: int) -> None:
    """The smaller gradient function is the gradient of the smaller function."""
    case = case_of(cj, net, seed)

    def grad(fn: Any) -> Any:
        return jax.grad(lambda params, *inputs: uneven(fn(params, *inputs)))

    inner = attempt(cj.shrink, grad(net.apply), case.graph, case.keep)
    want, again = (
        run(grad(case.small), params, *net.inputs)
        for params in (case.params, rounded(case.params))
    )
    close(run(inner, case.params, *net.inputs), want, 1e-4, again)


def check_vmap(cj: Any, net: Net, seed: int) -> None:
    """vmap over a stack of inputs and a stack of parameters."""
    case = case_of(cj, net, seed)

    def stacked(params: Any, *inputs: Any) -> Any:
        params = jax.tree.map(lambda x: jnp.stack([x * 0.5, x]), params)
        inputs = tuple(jnp.stack([x[::-1], x]) for x in inputs)
        return jax.vmap(case.small)(params, *inputs)

    got = run(stacked, case.params, *net.inputs)
    close(jax.tree.map(lambda x: x[1], got), case.small_out, 2e-5)


def check_second_cut(cj: Any, net: Net, seed: int) -> None:
    """A small function is a function: it traces to the same groups and cuts again."""
    case = case_of(cj, net, seed, least=2, exact=net.exact)
    again = attempt(cj.trace, case.small, case.params, *net.inputs)
    kept = {g.name: case.keep.get(g.name, np.ones(g.size)) for g in free(case.graph)}
    want = {name: int(k.sum()) for name, k in kept.items()}
    found = {g.name: g.size for g in free(again)}
    assert found == want, f"{again}\nafter\n{case.graph}"
    second = random_keep(again, seed + 1, exact=net.exact)
    params = cut_tree(cj, case.params, again, second)
    smaller = attempt(cj.shrink, case.small, again, second)
    masked = run(lambda p: cj.mask(p, again, second), case.params)
    got = run(smaller, params, *net.inputs)
    close(got, run(case.small, masked, *net.inputs))


def check_train(cj: Any, net: Net, seed: int) -> None:
    """Train mode shrinks by the graph of eval mode; its new state comes out small."""
    case = case_of(cj, net, seed)
    small = attempt(cj.shrink, net.train_apply, case.graph, case.keep)
    got, state = run(small, case.params, *net.train_inputs)
    want, full = run(net.train_apply, case.masked, *net.train_inputs)
    expected = cut_tree(cj, {**case.masked, **full}, case.graph, case.keep)
    close(state, {name: expected[name] for name in full}, 2e-5)
    if net.train_exact:
        close(got, want, 1e-4)


SHAPE = re.compile(r"\b(?:pred|[a-z]+\d+)\[([\d,]+)\]")


def check_program(cj: Any, net: Net, widths: dict[int, int]) -> None:
    """The compiled program names no full size, nor a multiple of one (`widths`)."""
    graph = graph_of(cj, net)
    keep = {g.name: np.arange(g.size) < widths[g.size] for g in free(graph)}
    params = cut_tree(cj, net.params, graph, keep)
    small = jax.jit(attempt(cj.shrink, net.apply, graph, keep))
    text = attempt(small.lower, params, *net.inputs).compile().as_text()
    dims = {int(d) for found in SHAPE.findall(text) for d in found.split(",")}
    assert widths[13] in dims, "no kept width found: is the text still HLO?"
    full = {d for d in dims if any(d % prime == 0 for prime in widths)}
    assert not full, f"full sizes {full} in the compiled program"
