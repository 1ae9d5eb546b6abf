"""What goes wrong in other pruners: Torch-Pruning's issues, rebuilt and cut here.

The nets themselves are specimens (tests/nets/known_failures.py and others) and obey
every law; here stand the claims that are particular to an issue.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from laws import CJ, tools
from nets import NETS, experts

JOINED = (
    *("densenet", "inception", "resnext", "groupnorm", "shuffle_twice", "grown"),
    *("group_shuffle", "option_a", "llama", "gram", "swin", "mobilenet"),
)


def widths(graph: Any, ratio: float) -> dict[str, np.ndarray]:
    """Every free group loses the share `ratio` of its channels, but never the last."""
    return {
        g.name: np.arange(g.size) < max(1, round(g.size * (1 - ratio)))
        for g in graph.free
    }


def check_ratio(graph: Any) -> None:
    """The higher the ratio, the smaller the net: parameters, FLOPs and bytes."""
    costs = [graph.cost(widths(graph, r)) for r in np.linspace(0, 1, 41)]
    for name in ("params", "flops", "bytes"):
        series = [getattr(cost, name) for cost in costs]
        assert series == sorted(series, reverse=True), f"{name} grows: {series}"
        assert series[-1] < series[0] / 2, f"{name} hardly shrinks: {series}"


def check_steps(graph: Any, seed: int) -> None:
    """Channels leave one by one, in any order: each takes parameters with it."""
    rng = np.random.default_rng(seed)
    keep = {g.name: np.ones(g.size, bool) for g in graph.free}
    before = graph.cost(keep)
    for step in rng.permutation(sum(g.size for g in graph.free)):
        at = step
        for mask in keep.values():
            if at < mask.size and mask.sum() > 1:
                mask[at] = False
            at -= mask.size
            if at < 0:
                break
        cost = graph.cost(keep)
        assert cost.params <= before.params and cost.flops <= before.flops, (
            f"{before} became {cost}"
        )
        before = cost


@pytest.mark.parametrize("name", JOINED)
def test_issue_417_a_higher_ratio_never_gives_a_larger_net(name: str) -> None:
    graph = tools.graph_of(CJ, NETS[name]())
    check_ratio(graph)
    check_steps(graph, 0)
    keep = widths(graph, 0.6)
    small = CJ.cut_params(NETS[name]().params, graph, keep)
    assert tools.count(small) == graph.cost(keep).params


class Rounded:
    """A graph whose costs round the width of concatenations up, as if by groups."""

    def __init__(self, real: Any):
        self.real, self.free = real, real.free

    def cost(self, keep: Any) -> Any:
        odd = sum(int(mask.sum()) for mask in keep.values()) % 2
        full = {name: np.ones_like(mask) for name, mask in keep.items()}
        return self.real.cost(full if odd else keep)


def test_saboteur_costs_that_jump() -> None:
    graph = Rounded(tools.graph_of(CJ, NETS["grown"]()))
    with pytest.raises(AssertionError, match="grows"):
        check_ratio(graph)
    with pytest.raises(AssertionError, match="became"):
        check_steps(graph, 0)


def only(graph: Any, path: str, size: int) -> str:
    """The name of the free group of this size that is a member of a parameter."""
    found = [
        g.name
        for g in graph.free
        if g.size == size and any(m.path == path for m in g.members)
    ]
    assert len(found) == 1, f"{path} has {found} of size {size}\n{graph}"
    return found[0]


@pytest.mark.parametrize(
    ("size", "shapes"),
    [
        (2, {"q": (9, 24), "k": (9, 8), "v": (9, 5), "o": (15, 9)}),
        (3, {"q": (9, 16), "k": (9, 16), "v": (9, 10), "o": (10, 9)}),
        (4, {"q": (9, 12), "k": (9, 4), "v": (9, 10), "o": (30, 9)}),
    ],
    ids=["key heads", "query heads of a key head", "rotary pairs"],
)
def test_issue_519_grouped_queries(size: int, shapes: dict[str, Any]) -> None:
    """One left of 2 key heads, of 3 queries to each, of 4 pairs: shapes on paper."""
    net = NETS["llama"]()
    graph = tools.graph_of(CJ, net)
    keep = {only(graph, "q", size): np.arange(size) < 1}
    small = CJ.cut_params(net.params, graph, keep)
    assert {name: small[name].shape for name in shapes} == shapes


def test_issue_519_a_key_head_takes_its_own_queries_along() -> None:
    net = NETS["llama"]()
    graph = tools.graph_of(CJ, net)
    keep = {only(graph, "q", 2): np.asarray([False, True])}
    small = CJ.cut_params(net.params, graph, keep)
    assert np.array_equal(small["q"], net.params["q"][:, 24:])
    assert np.array_equal(small["o"], net.params["o"][15:])


@pytest.mark.parametrize("how", ["times", "plus", "beside"])
def test_issue_510_one_channel_meets_many(how: str) -> None:
    """Whether multiplied, added or laid beside, one channel leaves the many free."""

    def apply(p: Any, x: jax.Array) -> jax.Array:
        many, one = jax.nn.relu(x @ p["many"]), jnp.tanh(x @ p["one"])
        if how == "beside":
            return jnp.concatenate([one, many], -1) @ p["out"]
        return (many * one if how == "times" else many + one) @ p["out"]

    rows = 7 if how == "beside" else 6
    shapes = {"many": (3, 6), "one": (3, 1), "out": (rows, 2)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    graph = CJ.trace(apply, params, jnp.ones((2, 3)))
    assert [(g.name, g.size) for g in graph.free] == [("many:1", 6)]
    keep = {"many:1": np.arange(6) < 2}
    small = CJ.cut_params(params, graph, keep)
    assert small["one"].shape == (3, 1) and small["out"].shape == (rows - 4, 2)
    x = jnp.arange(6.0).reshape(2, 3)
    want = apply(CJ.mask(params, graph, keep), x)
    np.testing.assert_allclose(CJ.shrink(apply, graph, keep)(small, x), want, 1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_issue_188_batched_matmul_of_data(transposed: bool) -> None:
    """[b, n, c] @ [b, c, m]: what is summed over is one group, n and m the inputs'."""

    def apply(p: Any, x: jax.Array) -> jax.Array:
        a, b = x @ p["a"], x @ p["b"]
        return a @ b.swapaxes(1, 2) if transposed else a.swapaxes(1, 2) @ b @ p["out"]

    shapes = {"a": (3, 5), "b": (3, 5 if transposed else 6), "out": (6, 2)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    graph = CJ.trace(apply, params, jnp.ones((2, 4, 3)))
    free = {g.name: {m.path for m in g.members} for g in graph.free if g.tasks}
    # Untransposed, the 5 rows of the product are an answer's and stay.
    assert free == ({"a:1": {"a", "b"}} if transposed else {"b:1": {"b", "out"}})


def test_ragged_experts() -> None:
    """JAX cannot vmap a ragged product; what needs no vmap holds."""
    net = experts.ragged()
    laws.check_groups(CJ, net)
    for seed in (0, 1):
        laws.check_shrink_equals_mask(CJ, net, seed)
        laws.check_cost(CJ, net, seed)
    laws.check_gates(CJ, net, 0)
    laws.check_grad(CJ, net, 0)
    laws.check_second_cut(CJ, net, 0)
