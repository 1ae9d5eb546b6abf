"""Groups that go whole: what may go, what the cut then computes, how a plan uses it."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import CJ
from laws.tools import close, graph_of, run, uneven
from nets import NETS, Net
from nets.turns import by_turns

import cutjax as cj
from cutjax.allocate import greedy, isomorphic, nested, threshold, uniform
from cutjax.budget import Budget
from cutjax.dims import kept
from cutjax.errors import BudgetError, KeepError
from cutjax.feasible import droppable, feasible, ladders_of
from cutjax.flow import Flow, Node, alive
from cutjax.graph_json import graph_from_json, graph_to_json

NAMES = list(NETS)


def none_of(graph: Any, names: Iterable[str]) -> dict[str, np.ndarray]:
    return {name: np.zeros(graph[name].size, bool) for name in names}


@functools.cache
def together(name: str) -> frozenset[str]:
    """Groups of a net that may all go at once."""
    graph = graph_of(CJ, NETS[name]())
    ladders = ladders_of(
        graph, [g.name for g in graph.free], graph.tasks, Budget(params=1.0, floor=0)
    )
    return droppable(graph, ladders, graph.tasks)


def single(name: str) -> list[str]:
    graph = graph_of(CJ, NETS[name]())
    return [g.name for g in graph.free if graph.answering([g.name]) == graph.tasks]


# What is left computes what the mask does. ------------------------------------------


def check_gone(cj: Any, net: Net, gone: Iterable[str]) -> None:
    """The cut function equals the masked one, with no channel of these groups."""
    graph = graph_of(cj, net)
    keep = none_of(graph, gone)
    small, params = cj.cut(net.apply, net.params, graph, keep)
    want = run(net.apply, cj.mask(net.params, graph, keep), *net.inputs)
    close(run(small, params, *net.inputs), want)
    left = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert graph.cost(keep).params == left


@pytest.mark.parametrize("name", by_turns(NAMES, 8))
def test_without_all_that_may_go_the_cut_is_the_mask(name):
    if not together(name):
        pytest.skip("every group is needed")
    check_gone(CJ, NETS[name](), together(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_without_any_one_of_them_the_cut_is_the_mask(name):
    for group in single(name):
        check_gone(CJ, NETS[name](), [group])


def ones_for_zeros(apply: Any, graph: Any, keep: Any) -> Any:
    """A function that finds something where there is nothing."""
    small = cj.shrink(apply, graph, keep)
    extra = 0.1 * sum(not mask.any() for mask in keep.values())
    return lambda *args: jax.tree.map(lambda y: y + extra, small(*args))


def test_saboteur_a_sum_over_nothing_is_not_zero():
    def cut(apply: Any, params: Any, graph: Any, keep: Any) -> Any:
        return ones_for_zeros(apply, graph, keep), cj.cut_params(params, graph, keep)

    broken = SimpleNamespace(**{**vars(CJ), "cut": cut})
    for name in ("mixer", "squeeze_excite"):
        check_gone(CJ, NETS[name](), together(name))
        with pytest.raises(AssertionError):
            check_gone(broken, NETS[name](), together(name))


# What may go, against what really changes. ------------------------------------------


def other(x: Any, seed: int) -> Any:
    """Another input of the same kind."""
    x, rng = np.asarray(x), np.random.default_rng(seed)
    if np.issubdtype(x.dtype, np.floating):
        if seed == 3:  # what only chooses between branches has to choose otherwise
            return jnp.asarray(-x)
        return jnp.asarray(x + 0.3 * rng.normal(size=x.shape).astype(x.dtype))
    if x.dtype == bool or not x.size:
        return jnp.asarray(x)
    return jnp.asarray(rng.integers(x.min(), x.max() + 1, x.shape).astype(x.dtype))


def depends(outs: Iterable[Any]) -> list[bool]:
    """Per array of an output, whether it differs between the inputs."""
    trees = [list(map(np.asarray, jax.tree.leaves(out))) for out in outs]
    return [
        any(not np.allclose(a, b[0], atol=1e-6) for a in b)
        for b in zip(*trees, strict=True)
    ]


def check_allowed(graph: Any, net: Net) -> None:
    """A group may go if and only if each array of the answer still tells inputs apart.

    Where the answer is not sure it says "depends", so one way round holds always.
    """
    full = jax.jit(net.apply)
    inputs = [
        net.inputs,
        *(jax.tree.map(lambda x, s=s: other(x, s), net.inputs) for s in (1, 2, 3)),
    ]
    before = depends(full(net.params, *x) for x in inputs)
    for group in graph.free:
        masked = _masked(net, graph, group.name)
        after = depends(full(masked, *x) for x in inputs)
        really = before == after
        said = graph.answering([group.name]) == graph.tasks
        assert said == really, (group.name, said, after)


def _masked(net: Net, graph: Any, name: str) -> Any:
    """By hand: `mask` refuses what no output survives."""
    keep = none_of(graph, [name])
    leaves, treedef = jax.tree.flatten(net.params)
    out = []
    for leaf, axes in zip(leaves, graph.axes.values(), strict=True):
        for i, axis in enumerate(axes):
            shape = [1] * np.ndim(leaf)
            shape[i] = axis.size
            leaf = jnp.where(kept(axis, keep).reshape(shape), leaf, 0)
        out.append(leaf)
    return jax.tree.unflatten(treedef, out)


TOLD = [
    *("mlp_tasks", "squeeze_excite", "vit_linen", "swiglu", "inception", "scanned"),
    *("stacked_layers", "moe_top2", "lora", "branches", "lstm", "data_matmul"),
]
MORE = [
    *("resnet18", "preact_resnet", "mixer", "densenet", "unet", "multi_query"),
    *("decoder", "gated_mlp", "detr", "bottleneck", "mobilenet", "pointnet"),
    "two_encoders",
]


@pytest.mark.parametrize(
    "name", [*TOLD, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)
def test_what_may_go_is_what_leaves_the_answers_alive(name):
    net = NETS[name]()
    check_allowed(graph_of(CJ, net), net)


def test_saboteur_all_groups_may_go_or_none():
    net = NETS["squeeze_excite"]()
    graph = graph_of(CJ, net)
    check_allowed(graph, net)
    everything = Flow((), {task: ((-1,),) for task in graph.tasks})
    nodes = tuple(
        Node(node.axes, ((i - 1,),)) for i, node in enumerate(graph.flow.nodes)
    )
    chain = Flow(nodes, {task: ((len(nodes) - 1,),) for task in graph.tasks})
    for flow in (everything, chain):
        with pytest.raises(AssertionError):
            check_allowed(dataclasses.replace(graph, flow=flow), net)


def two_branches(p: Any, x: jax.Array) -> jax.Array:
    a, b = (jnp.tanh(x @ p[n]) @ p[f"{n}_out"] for n in ("a", "b"))
    return a + b


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


PARALLEL = {
    n: shape(*s)
    for n, s in {"a": (3, 5), "a_out": (5, 2), "b": (3, 4), "b_out": (4, 2)}.items()
}


def test_of_parallel_branches_one_stays():
    graph = cj.trace(two_branches, PARALLEL, shape(1, 3))
    assert graph.answering(["a:1"]) == graph.answering(["b:1"]) == ("output",)
    assert graph.answering(["a:1", "b:1"]) == ()
    with pytest.raises(KeepError, match=r"'a:1', 'b:1' keeps no channel; keep one at"):
        graph.check_keep(none_of(graph, ["a:1", "b:1"]))
    graph.check_keep(none_of(graph, ["a:1"]))


def test_a_product_with_zero_takes_all_with_it_and_a_gate_does_not():
    def gated(p, x):
        return (x @ p["in"]) * jax.nn.sigmoid(x @ p["a"] @ p["b"]) @ p["out"]

    def bilinear(p, x):
        return (x @ p["in"]) * (x @ p["a"] @ p["b"]) @ p["out"]

    p = {"in": shape(3, 6), "a": shape(3, 4), "b": shape(4, 6), "out": shape(6, 2)}
    found = [cj.trace(f, p, shape(1, 3)).answering(["a:1"]) for f in (gated, bilinear)]
    assert found == [("output",), ()]


def test_each_task_is_asked():
    def apply(p, x):
        h = x @ p["in"]
        one = h + jnp.tanh(h @ p["a"]) @ p["b"]
        return {"one": one @ p["y"], "two": jnp.tanh(h @ p["a"]) @ p["z"]}

    p = {
        "in": shape(3, 6),
        "a": shape(6, 4),
        "b": shape(4, 6),
        "y": shape(6, 2),
        "z": shape(4, 2),
    }
    graph = cj.trace(apply, p, shape(1, 3))
    assert graph.answering(["a:1"]) == ("one",)
    keep = none_of(graph, ["a:1"])
    graph.check_keep(keep, ("one",))
    graph.check_keep(keep, ())
    with pytest.raises(KeepError, match="the output of 'two' does not depend"):
        graph.check_keep(keep)
    small = cj.shrink(apply, graph, keep, "one")
    full = jax.tree.map(lambda s: jnp.ones(s.shape), p)
    out = small(cj.cut_params(full, graph, keep), jnp.ones((1, 3)))
    assert set(out) == {"one"}


def test_alive_is_a_least_fixpoint():
    """Two nodes that feed each other, and nothing else, are dead."""
    loop = Flow((Node((), ((1,),)), Node((), ((0,),))), {"y": ((1,),)})
    assert alive(loop, (), ("y",)) == []
    fed = Flow((Node((), ((1, -1),)), Node((), ((0,),))), {"y": ((1,),)})
    assert alive(fed, (), ("y",)) == ["y"]
    both = Flow((Node((), ((-1,), (1,))), Node((), ((0,),))), {"y": ((0,),)})
    assert alive(both, (), ("y",)) == []


# At width zero all else still works. ------------------------------------------------


@pytest.mark.parametrize("name", ["squeeze_excite", "mixer", "resnext"])
def test_gradients_and_jit(name):
    net, graph = NETS[name](), graph_of(CJ, NETS[name]())
    keep = none_of(graph, together(name))
    small, params = cj.cut(net.apply, net.params, graph, keep)

    def loss(p):
        return uneven(small(p, *net.inputs))

    def masked(p):
        return uneven(net.apply(cj.mask(p, graph, keep), *net.inputs))

    got = run(jax.grad(loss), params)
    want = cj.cut_params(run(jax.grad(masked), net.params), graph, keep)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
    close(got, want, 1e-4)


def test_train_mode_and_statistics():
    net, graph = NETS["preact_resnet"](), graph_of(CJ, NETS["preact_resnet"]())
    keep = none_of(graph, together("preact_resnet"))
    small = cj.shrink(net.train_apply, graph, keep)
    params = cj.cut_params(net.params, graph, keep)
    out = run(small, params, *net.train_inputs)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out))


def test_saved_and_loaded(tmp_path):
    net, graph = NETS["squeeze_excite"](), graph_of(CJ, NETS["squeeze_excite"]())
    keep = none_of(graph, together("squeeze_excite"))
    small, params = cj.cut(net.apply, net.params, graph, keep)
    cj.save(tmp_path / "small", params, graph=graph, keep=keep)
    again, loaded, info = cj.load(tmp_path / "small", net.apply)
    assert info.graph.flow == graph.flow
    assert info.graph.activations == graph.activations
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), p) for p in (params, loaded)]
    assert shapes[0] == shapes[1]
    close(run(again, loaded, *net.inputs), run(small, params, *net.inputs))


def test_graphs_stored_before_say_trace_again():
    graph = graph_of(CJ, NETS["resnet18"]())
    stored = graph_to_json(graph)
    assert graph_from_json(json.loads(json.dumps(stored)), graph.treedef) == graph
    del stored["flow"], stored["activations"]
    old = graph_from_json(stored, graph.treedef)
    assert old == dataclasses.replace(graph, flow=None, activations=None)
    (name, *_) = together("resnet18")
    with pytest.raises(KeepError, match="keep one at least, or trace the function"):
        old.check_keep(none_of(old, [name]))
    for budget in (Budget(params=0.5, floor=0), Budget(activations=0.5)):
        with pytest.raises(BudgetError, match="trace the function again"):
            cj.plan(old, drawn(old), budget=budget)
    assert old.cost().activations is None
    _, info = cj.plan(old, drawn(old), budget=Budget(params=0.5))
    assert "activations" not in info.amounts and not info.dropped


# Plans that drop groups. ------------------------------------------------------------


def drawn(graph: cj.Graph, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    scores = {
        g.name: (rng.random(g.size) * 10 ** rng.uniform(-2, 1)).astype(np.float32)
        for g in graph.free
    }
    return dict.fromkeys(graph.tasks, scores)


ALL = [greedy, nested, uniform, threshold, isomorphic]


@pytest.mark.parametrize("allocate", ALL)
@pytest.mark.parametrize("name", ["resnet18", "vit_linen", "inception"])
def test_plans_with_floor_zero_answer_and_meet_the_budget(name, allocate):
    graph = graph_of(CJ, NETS[name]())
    dropped = set()
    for seed, share in enumerate((0.5, 0.3, 0.15)):
        budget = Budget(params=share, floor=0)
        keep, info = cj.plan(
            graph, drawn(graph, seed), budget=budget, allocate=allocate
        )
        graph.check_keep(keep)
        assert info.cost.params <= share * info.full.params
        assert set(info.dropped) == {n for n, m in keep.items() if not m.any()}
        assert all(n in str(info) for n in info.dropped)
        dropped |= set(info.dropped)
    assert dropped or allocate is uniform


def test_dropping_wins_score_over_keeping_one_of_each():
    graph = graph_of(CJ, NETS["resnet18"]())
    scores = drawn(graph, 3)
    first = next(iter(scores.values()))
    kept = []
    for floor in (0, 1):
        budget = Budget(params=0.15, floor=floor)
        keep, _ = cj.plan(graph, scores, budget=budget)
        kept.append(sum(first[n][m].sum() for n, m in keep.items()))
    assert kept[0] > kept[1]


def test_the_least_is_reached_where_the_worst_branch_is_the_cheaper_to_keep():
    def apply(p, x):
        a = jnp.tanh(x @ p["a"]) @ p["a_out"]
        return a + jnp.tanh(x[:, :2] @ p["b"]) @ p["b_out"]

    graph = cj.trace(apply, {**PARALLEL, "b": shape(2, 4)}, shape(1, 3))
    scores = {"a:1": np.full(5, 2, np.float32), "b:1": np.ones(4, np.float32)}
    table = feasible(graph, Budget(params=1.0, floor=0, max_ratio=1.0))
    assert table.rows["params"].least == 2 + 2
    budget = Budget(params=2 + 2, floor=0, max_ratio=1.0)
    keep, info = cj.plan(graph, {"output": scores}, budget=budget)
    assert info.dropped == ("a:1",) and keep["b:1"].sum() == 1


def test_floors_by_pattern_choose_what_may_go():
    graph = graph_of(CJ, NETS["resnet18"]())
    budget = Budget(params=0.1, floor={"*Basic_1*": 0})
    _, info = cj.plan(graph, drawn(graph), budget=budget, allocate=threshold)
    assert set(info.dropped) <= {"params/Basic_1/Conv_0/kernel:3"}


@pytest.mark.parametrize("allocate", [nested, uniform, threshold, isomorphic])
def test_a_larger_budget_drops_no_more(allocate):
    graph = graph_of(CJ, NETS["resnet18"]())
    before: dict[str, np.ndarray] = {}
    for share in np.linspace(0.1, 1, 5).tolist():
        keep, _ = cj.plan(
            graph,
            drawn(graph),
            budget=Budget(params=share, floor=0, max_ratio=1.0),
            allocate=allocate,
        )
        assert all((mask <= keep[name]).all() for name, mask in before.items())
        before = keep
