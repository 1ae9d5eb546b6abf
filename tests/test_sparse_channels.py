"""Channels as masks: traced keeps, the reading side, dropping and growing."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nets import NETS, Net
from nets.base import normal, tree

import cutjax as cj
from cutjax import sparse
from cutjax.errors import KeepError
from cutjax.sparse import channels

SOME = ["mlp_tasks", "resnet18", "densenet", "resnext", "vit_linen", "branches", "film"]


@functools.cache
def case(name: str) -> tuple[Any, cj.Graph]:
    net = NETS[name]()
    return net, cj.trace(net.apply, net.params, *net.inputs)


def drawn(graph: cj.Graph, names: Any, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    keep = {name: rng.random(graph[name].size) < 0.5 for name in names}
    return {name: mask | (np.arange(mask.size) == 0) for name, mask in keep.items()}


def close(a: Any, b: Any, tol: float = 2e-4) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, tol, tol / 10), a, b)


@pytest.mark.parametrize("name", SOME)
def test_traced_masks_are_those_of_mask(name):
    net, graph = case(name)
    keep = drawn(graph, [g.name for g in graph.free])
    want = cj.mask(net.params, graph, keep)

    @jax.jit
    def traced(keep: Any) -> Any:
        return sparse.apply_masks(net.params, sparse.channel_masks(graph, keep))

    got = traced({name: jnp.asarray(mask) for name, mask in keep.items()})
    jax.tree.map(np.testing.assert_array_equal, got, want)


def check_reading(name: str, growable: Any) -> None:
    """A zero reading side is as good as masking all members."""
    net, graph = case(name)
    keep = drawn(graph, growable(graph))
    both = cj.mask(net.params, graph, keep)
    masks = sparse.reading_masks(graph, keep)
    reading = sparse.apply_masks(net.params, masks)
    apply = jax.jit(net.apply)
    close(apply(reading, *net.inputs), apply(both, *net.inputs))


@pytest.mark.parametrize("name", SOME)
def test_the_reading_side_is_enough(name):
    check_reading(name, sparse.growable)


def test_saboteur_all_that_a_known_kernel_reads(monkeypatch):
    """Without looking at branches, sums, products the reading side is not enough."""

    def careless(graph: cj.Graph) -> Any:
        found = {}
        for g in graph.free:
            paths = {t.path for t in graph.terms if g.name in t.reads}
            places = {(m.path, m.axis) for m in g.members if m.path in paths}
            if places:
                found[g.name] = frozenset(places)
        return found

    monkeypatch.setattr(channels, "growable", careless)
    with pytest.raises(AssertionError):
        check_reading("branches", careless)


def test_what_is_growable_in_known_nets():
    _, graph = case("mlp_tasks")
    # The trunk is read by age's hidden layer and by smile's only layer.
    assert {g: set(r) for g, r in sparse.growable(graph).items()} == {
        "trunk/kernel:1": {("age/hidden/kernel", 0), ("smile/kernel", 0)},
        "age/hidden/kernel:1": {("age/out/kernel", 0)},
    }

    def summed(w: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ w["a"])
        return {"y": h @ w["b"], "z": h.sum(-1)}

    w = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
    assert not sparse.growable(cj.trace(summed, w, jnp.ones((2, 3))))


def stream() -> Net:
    """A stream of 24, written and read twice, 20 channels inside, a norm's scale."""

    def apply(p: Any, x: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ p["enc"]["kernel"] + p["enc"]["bias"]) * p["scale"]
        h = h + jnp.tanh(h @ p["up"]["kernel"] + p["up"]["bias"]) @ p["down"]["kernel"]
        return jnp.tanh(h) @ p["head"]["kernel"]

    params = tree(
        enc={"kernel": (6, 24), "bias": (24,)},
        scale=(24,),
        up={"kernel": (24, 20), "bias": (20,)},
        down={"kernel": (20, 24)},
        head={"kernel": (24, 3)},
    )
    return Net("stream", apply, params, (normal(16, 6),))


def net_and_loss(name: str) -> tuple[Any, cj.Graph, Any]:
    """A net, its graph, and a loss with random targets."""
    net = stream() if name == "stream" else NETS[name]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    rng = np.random.default_rng(0)
    out = jax.eval_shape(net.apply, net.params, *net.inputs)
    target = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), out
    )

    def loss(params: Any) -> jax.Array:
        got = net.apply(params, *net.inputs)
        parts = jax.tree.map(lambda a, b: jnp.mean((a - b) ** 2), got, target)
        return jnp.sum(jnp.stack(jax.tree.leaves(parts)))

    return net, graph, loss


def run(tx: Any, params: Any, loss: Any, steps: int) -> list[tuple[Any, Any, Any]]:
    """(parameters, state, gradient) before every step, and at the end."""
    grad = jax.jit(jax.grad(loss))

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    out = [(params, state, grad(params))]
    for _ in range(steps):
        params, state = step(*out[-1])
        out.append((params, state, grad(params)))
    return out


def norms(tree: Any, graph: cj.Graph, name: str, reading: bool) -> np.ndarray:
    """Per channel, the largest |value| on one side; counted by hand."""
    leaves = {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(v)
              for p, v in jax.tree.leaves_with_path(tree)}  # fmt: skip
    places = sparse.growable(graph)[name]
    total = np.zeros(graph[name].size)
    for m in graph[name].members:
        if ((m.path, m.axis) in places) == reading:
            at = channels.channels(m.layout, name)
            rows = np.moveaxis(leaves[m.path], m.axis, 0)
            for i, c in enumerate(at):
                if c >= 0:
                    total[c] = max(total[c], np.abs(rows[i]).max())
    return total


@pytest.fixture(scope="module", params=["stream", "mlp_tasks"])
def trained(request: Any) -> dict[str, Any]:
    net, graph, loss = net_and_loss(request.param)
    names = list(sparse.growable(graph))
    assert len(names) == len(graph.free) == 2
    keep = drawn(graph, names)
    tx = sparse.scheduled_channels(
        optax.adamw(1e-3),
        graph,
        sparse.channel_rigl(graph, 50, share=0.6),
        keep,
        every=2,
        start=1,
    )
    seen = run(tx, net.params, loss, 6)
    return {"net": net, "graph": graph, "keep": keep, "seen": seen, "loss": loss}


def test_each_group_keeps_its_number(trained):
    for _, state, _ in trained["seen"]:
        for name, mask in trained["keep"].items():
            assert int(state.keep[name].sum()) == mask.sum()


def test_off_means_not_read_and_frozen(trained):
    graph = trained["graph"]
    for (p, _, _), (q, t, _) in itertools.pairwise(trained["seen"]):
        masks = sparse.channel_masks(graph, t.keep)
        for name in trained["keep"]:
            off = ~np.asarray(t.keep[name])
            assert (norms(q, graph, name, reading=True)[off] == 0).all()
            for part in (t.inner[0].mu, t.inner[0].nu):
                assert (norms(part, graph, name, reading=True)[off] == 0).all()
                assert (norms(part, graph, name, reading=False)[off] == 0).all()
        # The writing side of what is off did not move, weight decay included.
        reading = sparse.reading_masks(graph, t.keep)

        def still(a: Any, b: Any, m: Any, r: Any) -> None:
            frozen = ~np.asarray(m) & (True if r is None else np.asarray(r))
            np.testing.assert_array_equal(np.asarray(a)[frozen], np.asarray(b)[frozen])

        none = lambda v: v is None  # noqa: E731
        flat = [jax.tree.leaves(x, is_leaf=none) for x in (p, q, masks, reading)]
        for a, b, m, r in zip(*flat, strict=True):
            if m is not None:
                still(a, b, m, r)


def check_grown_get_a_gradient(
    trained: Any, change: Any = lambda p, graph, keep: p
) -> None:
    """At the step after growing, the reading side of each grown channel has one."""
    graph, grown = trained["graph"], 0
    grad = jax.jit(jax.grad(trained["loss"]))
    for (p, s, _), (_, t, _) in itertools.pairwise(trained["seen"]):
        slopes = None
        for name in trained["keep"]:
            new = np.asarray(t.keep[name] & ~s.keep[name])
            if new.any():
                if slopes is None:
                    slopes = grad(change(p, graph, s.keep))
                grown += new.sum()
                assert (norms(slopes, graph, name, reading=True)[new] > 0).all(), name
    assert grown > 0, "nothing grew"


def test_every_grown_channel_gets_a_gradient(trained):
    check_grown_get_a_gradient(trained)


def test_saboteur_zero_on_both_sides(trained):
    """With the writing side zeroed as well, nothing flows to what grows."""

    def both(params: Any, graph: cj.Graph, keep: Any) -> Any:
        return cj.mask(params, graph, jax.device_get(keep))

    with pytest.raises(AssertionError):
        check_grown_get_a_gradient(trained, both)


def test_growing_changes_no_output(trained):
    """What grows starts at zero on the reading side: the step that grows with a
    learning rate of zero only drops."""
    net, graph, keep = trained["net"], trained["graph"], trained["keep"]
    rule = sparse.channel_rigl(graph, 50, share=0.6)
    tx = sparse.scheduled_channels(optax.sgd(0.0), graph, rule, keep, every=1)
    (_, s, _), (q, t, _) = run(tx, net.params, trained["loss"], 1)
    dropped = {n: s.keep[n] & t.keep[n] for n in keep}
    masked = cj.mask(net.params, graph, jax.device_get(dropped))
    apply = jax.jit(net.apply)
    close(apply(q, *net.inputs), apply(masked, *net.inputs))


def test_the_state_is_a_keep(trained):
    """Cut by the masks at the end: the same outputs, and the widths that were kept."""
    net, graph = trained["net"], trained["graph"]
    params, state, _ = trained["seen"][-1]
    keep = jax.device_get(state.keep)
    small_apply, small = cj.cut(net.apply, params, graph, keep)
    want = jax.jit(net.apply)(params, *net.inputs)
    close(jax.jit(small_apply)(small, *net.inputs), want)
    assert sum(v.size for v in jax.tree.leaves(small)) == graph.cost(keep).params


def test_drop_and_grow_by_hand():
    w = {
        "a": jnp.array([[1.0, 2.0, 3.0, 0.5, 1.0]]),
        "b": jnp.array([[1.0], [0.1], [1.0], [0.0], [0.0]]),
    }
    graph = cj.trace(lambda w, x: jnp.tanh(x @ w["a"]) @ w["b"], w, jnp.ones((1, 1)))
    keep = {"a:1": jnp.array([True, True, True, False, False])}
    grads = {
        "a": jnp.zeros((1, 5)),
        "b": jnp.array([[0.0], [1.0], [0.0], [2.0], [3.0]]),
    }
    rule = sparse.channel_rigl(graph, 10, share=0.4)
    # One of three goes: 2.0 * 0.1 is the least. The largest gradient is that of 4.
    got = rule(jnp.int32(0), None, w, grads, keep)["a:1"]
    assert got.tolist() == [True, False, True, False, True]


def test_errors_of_channel_masks():
    _, graph = case("mlp_tasks")
    with pytest.raises(KeepError, match="nearest"):
        _ = sparse.channel_masks(graph, {"trunk/kernel": np.ones(8, bool)})
    with pytest.raises(KeepError, match=r"\[7\], not \[8\]"):
        _ = sparse.channel_masks(graph, {"trunk/kernel:1": np.ones(7, bool)})
    with pytest.raises(KeepError, match="pinned"):
        _ = sparse.channel_masks(graph, {"smile/kernel:1": np.ones(2, bool)})
    _, graph = case("branches")
    with pytest.raises(KeepError, match="growable"):
        _ = sparse.reading_masks(graph, {"first/kernel:1": np.ones(6, bool)})


def test_masked_training_goes_on_after_the_cut():
    """Parameters, masks, momenta are cut along; the next step is that of the whole."""
    net, graph, loss = net_and_loss("mlp_tasks")
    keep = drawn(graph, [g.name for g in graph.free], 1)
    masks = sparse.channel_masks(graph, keep)
    tx = sparse.masked(optax.adamw(1e-2), masks)
    (params, state, grads), (after, _, _) = run(
        tx, cj.mask(net.params, graph, keep), loss, 2
    )[1:]
    small_state = cj.cut_params(state, graph, keep)
    _, small = cj.cut(net.apply, params, graph, keep)
    updates, _ = tx.update(cj.cut_params(grads, graph, keep), small_state, small)
    got = optax.apply_updates(small, updates)
    assert all(bool(m.all()) for m in jax.tree.leaves(sparse.masks_of(small_state)))
    close(got, cj.cut_params(after, graph, keep), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_the_reading_side_is_enough_everywhere(name):
    if sparse.growable(case(name)[1]):
        check_reading(name, sparse.growable)
