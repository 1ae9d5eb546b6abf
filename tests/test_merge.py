"""Several networks as one: laws over all nets, a dense oracle, independent solvers."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.tools import free, run
from nets import NETS

import cutjax as cj
from cutjax.errors import DataError, KeepError, MismatchError
from cutjax.merge import DROPPED, OWN, Network
from cutjax.merge.merged import answers


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.PRNGKey(seed), shape)


def rescaled(params: Any, seed: int) -> Any:
    """Other parameters: each number times something near one."""
    rng = np.random.default_rng(seed)

    def change(leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return leaf
        return (leaf * rng.uniform(0.8, 1.2, np.shape(leaf))).astype(leaf.dtype)

    return jax.tree.map(change, params)


def mlp(p: Any, x: Any) -> Any:
    h = jax.nn.relu(x @ p["a"])
    return jax.nn.relu(h @ p["b"] + p["c"]) @ p["d"] + p["e"]


def mlp_params(seed: int, classes: int = 3) -> dict[str, Any]:
    shapes = {"a": (5, 8), "b": (8, 6), "c": (6,), "d": (6, classes), "e": (classes,)}
    return {k: normal(seed + i, *s) for i, (k, s) in enumerate(shapes.items())}


X = normal(99, 16, 5)


def mlps(*classes: int) -> dict[str, Network]:
    found = {}
    for i, (name, n) in enumerate(zip("abc", classes, strict=False)):
        params = mlp_params(10 * i, n)
        found[name] = Network(mlp, params, cj.trace(mlp, params, X))
    return found


SPLIT = {
    "a:1": {
        "a": np.array([0, 1, 2, 2, OWN, OWN, DROPPED, 7]),
        "b": np.array([7, OWN, 1, 0, OWN, DROPPED, OWN, 2]),
    },
    "b:1": {
        "a": np.array([0, 3, 3, OWN, OWN, OWN]),
        "b": np.array([OWN, 0, DROPPED, 5, 3, 0]),
    },
}


# ---- laws


def alike(got: Any, want: Any) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        if a.size:
            assert np.abs(a - b).max() <= 2e-5 * max(np.abs(b).max(), 1e-3)


WAYS = {
    "own": lambda n: {"one": np.full(n, OWN), "two": np.full(n, OWN)},
    "shared": lambda n: {"one": np.arange(n), "two": np.arange(n)},
    "apart": lambda n: {"one": np.full(n, OWN), "two": np.arange(n)},
}


def check_each_as_it_was(merge: Any, net: Any, way: str) -> None:
    """Nothing is shared, or all by equals, or one has the shared side for itself."""
    graph = cj.trace(net.apply, net.params, *net.inputs)
    other = net.params if way == "shared" else rescaled(net.params, 1)
    params = {"one": net.params, "two": other}
    networks = {n: Network(net.apply, p, graph) for n, p in params.items()}
    # What is shared as it stands need not be named.
    sharing = {g.name: WAYS[way](g.size) for g in free(graph) if way != "shared"}
    merged = merge(networks, sharing, net.inputs)
    found = run(merged.apply, merged.params, *net.inputs)
    for name, p in params.items():
        for task, want in answers(name, run(net.apply, p, *net.inputs)).items():
            alike(found[task], want)


def every() -> list[Any]:
    """All nets in all ways; by default in turn one of the first two."""
    found = []
    for i, (name, way) in enumerate(itertools.product(NETS, ["own", "shared"])):
        # Of `generate`, whose loop makes several results, always: one may be empty.
        marks = pytest.mark.slow if i % 16 not in (0, 3) and name != "generate" else ()
        found.append(pytest.param(name, way, marks=marks, id=f"{name}-{way}"))
    for name in NETS:
        # See test_merge_listening.py, where every network goes its own way.
        marks = pytest.mark.slow
        found.append(pytest.param(name, "apart", marks=marks, id=f"{name}-apart"))
    return found


@pytest.mark.parametrize(("name", "way"), every())
def test_networks_stay_what_they_were(name, way):
    try:
        check_each_as_it_was(cj.merge.average, NETS[name](), way)
    except KeepError as error:
        # Not everything can be shared by some only; then it says so.
        if way != "apart" or " be shared " not in str(error):
            raise


@pytest.mark.parametrize("way", WAYS)
def test_a_merge_that_mixes_them_up_is_found_out(way):
    def broken(networks: Any, *rest: Any) -> Any:
        swapped = dict(zip(networks, reversed([*networks.values()]), strict=True))
        if way == "shared":
            two = networks["two"]
            swapped["two"] = two._replace(params=rescaled(two.params, 2))
        return cj.merge.average(swapped, *rest)

    with pytest.raises(AssertionError):
        check_each_as_it_was(broken, NETS["mlp"](), way)


def dense(networks: Any, sharing: Any, x: Any) -> dict[str, Any]:
    """The merged function of `mlp`s, as loops over channels in numpy."""

    slots = {g: {n: s.tolist() for n, s in f.items()} for g, f in sharing.items()}
    p = {n: jax.tree.map(np.float64, net.params) for n, net in networks.items()}
    h1: dict[Any, np.ndarray] = {}
    x = np.asarray(x, np.float64)
    for c in range(8):
        who = [(n, i) for n in p for i in range(8) if slots["a:1"][n][i] == c]
        if who:
            h1[c] = np.maximum(x @ np.mean([p[n]["a"][:, i] for n, i in who], 0), 0)
    for n in p:
        for i in range(8):
            if slots["a:1"][n][i] == OWN:
                h1[n, i] = np.maximum(x @ p[n]["a"][:, i], 0)
    h2: dict[Any, np.ndarray] = {}

    def read(n: str, weights: Any, group: str, values: Any, *, own: bool) -> Any:
        total: Any = 0.0
        for j, slot in enumerate(slots[group][n]):
            if slot >= 0:
                total = total + values[slot] * weights[j]
            elif slot == OWN and own:
                total = total + values[n, j] * weights[j]
        return total

    for c in range(6):
        who = [(n, i) for n in p for i in range(6) if slots["b:1"][n][i] == c]
        if who:
            made = [
                read(n, p[n]["b"][:, i], "a:1", h1, own=False) + p[n]["c"][i]
                for n, i in who
            ]
            h2[c] = np.maximum(np.mean(made, 0), 0)
    out = {}
    for n in p:
        for i in range(6):
            if slots["b:1"][n][i] == OWN:
                made = read(n, p[n]["b"][:, i], "a:1", h1, own=True) + p[n]["c"][i]
                h2[n, i] = np.maximum(made, 0)
        logits = [
            read(n, p[n]["d"][:, k], "b:1", h2, own=True)
            for k in range(p[n]["d"].shape[1])
        ]
        out[n] = np.stack(logits, -1) + p[n]["e"]
    return out


def check_against_dense(merge: Any) -> None:
    networks = mlps(3, 4)
    merged = merge(networks, SPLIT, X)
    found = run(merged.apply, merged.params, X)
    for name, want in dense(networks, SPLIT, X).items():
        np.testing.assert_allclose(found[name], want, rtol=1e-4, atol=1e-4)


def test_any_sharing_equals_loops_over_channels():
    check_against_dense(cj.merge.average)


def test_what_reads_the_shared_is_needed():
    def broken(*args: Any) -> Any:
        merged = cj.merge.average(*args)
        tree = jax.tree.map(lambda a: a, merged.params)
        tree["params"]["reads"] = jax.tree.map(jnp.zeros_like, tree["params"]["reads"])
        return merged._replace(params=tree)

    with pytest.raises(AssertionError):
        check_against_dense(broken)


@pytest.mark.parametrize("kept", [0, 2, 4])
def test_what_lies_beside_channels_is_read_once(kept):
    """Rows of an input that is concatenated with channels, however many are shared."""

    def apply(p: Any, x: Any) -> Any:
        h = jnp.concatenate([x, jax.nn.relu(x @ p["a"])], -1)
        return jnp.tanh(h @ p["b"]) @ p["c"]

    shapes = {"a": (5, 4), "b": (9, 6), "c": (6, 2)}
    params = {k: normal(i, *shape) for i, (k, shape) in enumerate(shapes.items())}
    net = Network(apply, params, cj.trace(apply, params, X))
    slots = np.where(np.arange(4) < kept, np.arange(4), OWN)
    sharing = {"a:1": slots, "b:1": np.full(6, OWN)}
    both = {g: dict.fromkeys("ab", to) for g, to in sharing.items()}
    merged = cj.merge.average(dict.fromkeys("ab", net), both, X)
    for out in run(merged.apply, merged.params, X).values():
        np.testing.assert_allclose(out, apply(params, X), rtol=1e-4, atol=1e-5)


def test_a_tied_kernel_makes_what_lies_beside_channels():
    """The pictures themselves are appended, read, and made again by the transpose."""

    def apply(p: Any, x: Any) -> Any:
        h = jnp.concatenate([jax.nn.relu(x @ p["a"]), x], -1)
        return jnp.tanh(jnp.tanh(h @ p["w"]) @ p["w"].T) @ p["b"]

    shapes = {"a": (5, 6), "w": (11, 4), "b": (11, 2)}
    p = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    networks = dict.fromkeys("ab", Network(apply, p, cj.trace(apply, p, X)))
    assert {*cj.merge.whole_groups(networks["a"], X)} == {"a:1", "w:1"}
    merged = cj.merge.average(networks, {}, X)
    for out in run(merged.apply, merged.params, X).values():
        np.testing.assert_allclose(out, apply(p, X), rtol=1e-4, atol=1e-5)


def test_a_tied_kernel_is_shared_in_part():
    """An embedding that is the head as well: equal networks stay what they were."""

    def apply(p: Any, x: Any) -> Any:
        return jax.nn.relu(p["e"][x]) @ p["e"].T

    p, x = {"e": normal(1, 11, 6)}, jnp.arange(7)
    graph = cj.trace(apply, p, x)
    networks = dict.fromkeys("ab", Network(apply, p, graph))
    to = np.array([0, 1, 2, OWN, OWN, OWN])
    merged = cj.merge.average(networks, {"e:1": dict.fromkeys("ab", to)}, x)
    for out in run(merged.apply, merged.params, x).values():
        np.testing.assert_allclose(out, apply(p, x), rtol=1e-4, atol=1e-5)
    uneven = {"e:1": {"a": to, "b": np.arange(6)}}
    with pytest.raises(KeepError, match=r"'e' is used in several ways.* one to one;"):
        cj.merge.average(networks, uneven, x)


# ---- cost


def check_cost(networks: Any, sharing: Any, x: Any, slack: float) -> None:
    """For every subset: XLA's count is the graph's, within what it counts besides."""
    merged = cj.merge.average(networks, sharing, x)
    graph = cj.trace(merged.apply, merged.params, x)
    for count in range(1, len(networks) + 1):
        for tasks in itertools.combinations(networks, count):
            small, params = cj.cut(merged.apply, merged.params, graph, {}, tasks=tasks)
            cost = graph.cost(tasks=tasks)
            compiled = jax.jit(small).lower(params, x).compile()
            analysis: Any = compiled.cost_analysis()
            flops = analysis["flops"]
            assert cost.flops <= flops <= slack * cost.flops
            assert cost.params == sum(p.size for p in jax.tree.leaves(params))


def test_a_subset_runs_what_is_shared_and_its_own():
    networks = mlps(3, 4, 2)
    half = {
        g.name: {
            n: np.where(np.arange(g.size) < g.size // 2, np.arange(g.size), OWN)
            for n in networks
        }
        for g in networks["a"].graph.free
    }
    check_cost(networks, half, normal(5, 128, 5), 1.3)
    both = cj.merge.average(networks, half, X)
    graph = cj.trace(both.apply, both.params, X)
    one, all_ = graph.cost(tasks=("a",)).flops, graph.cost().flops
    assert all_ < 3 * one < 3 * networks["a"].graph.cost().flops


def test_two_equal_networks_cost_one_and_a_head():
    networks = mlps(3)
    networks["b"] = networks["a"]
    merged = cj.merge.average(networks, {}, X)
    count = sum(p.size for p in jax.tree.leaves(merged.params))
    assert count == sum(p.size for p in jax.tree.leaves(mlp_params(0))) + 6 * 3 + 3


# ---- an ordinary function


def test_it_jits_differentiates_and_maps():
    networks = mlps(3, 4)
    merged = cj.merge.average(networks, SPLIT, X)
    graph = cj.trace(merged.apply, merged.params, X)
    assert set(graph.tasks) == {"a", "b"} and len(graph.free) > 4

    def loss(p: Any, x: Any) -> Any:
        return sum(jnp.sum(y**2) for y in merged.apply(p, x).values())

    grads = jax.jit(jax.grad(loss))(merged.params, X)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    mapped = jax.vmap(lambda x: merged.apply(merged.params, x[None]))(X)
    whole = merged.apply(merged.params, X)
    np.testing.assert_allclose(mapped["a"][:, 0], whole["a"], rtol=1e-5, atol=1e-5)


def test_what_was_inferred_is_kept_where_nothing_is_traced():
    calls = []

    def counted(p: Any, x: Any) -> Any:
        calls.append(x.shape)
        return mlp(p, x)

    networks = {n: net._replace(apply=counted) for n, net in mlps(3, 4).items()}
    merged = cj.merge.average(networks, SPLIT, X)
    first = merged.apply(merged.params, X)
    seen = len(calls)
    jax.tree.map(alike, merged.apply(merged.params, X), first)
    assert len(calls) == seen
    jax.tree.map(alike, jax.jit(merged.apply)(merged.params, X), first)
    _ = merged.apply(merged.params, X[:2])
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), merged.params)
        (y, *_) = merged.apply(wide, X.astype(jnp.float64)).values()
        assert y.dtype == jnp.float64 and calls[-1] == X.shape


@pytest.mark.parametrize("own", [False, True])
def test_a_recurrence_stays_a_loop_where_nothing_mixes_within(own):
    """Else its steps are written out; the same network thrice stays what it was."""

    def apply(p: Any, x: Any) -> Any:
        def one(h: Any, x: Any) -> Any:
            return jnp.tanh(h @ p["h"] + x @ p["x"]), None

        h, _ = jax.lax.scan(one, jnp.zeros((x.shape[1], 8)), x)
        return jax.nn.relu(h @ p["m"]) @ p["o"]

    shapes = {"h": (8, 8), "x": (5, 8), "m": (8, 6), "o": (6, 2)}
    p = {name: normal(i, *shape) / 3 for i, (name, shape) in enumerate(shapes.items())}
    x = normal(5, 30, 7, 5)
    net = Network(apply, p, cj.trace(apply, p, x))
    to = np.full(8, OWN) if own else np.arange(8)
    half = np.full(6, OWN) if own else np.array([0, 1, 2, OWN, OWN, OWN])
    sharing = {g: dict.fromkeys("abc", s) for g, s in (("h:0", to), ("m:1", half))}
    merged = cj.merge.average(dict.fromkeys("abc", net), sharing, x)
    for out in run(merged.apply, merged.params, x).values():
        np.testing.assert_allclose(out, apply(p, x), rtol=1e-4, atol=1e-5)
    loops = str(jax.make_jaxpr(merged.apply)(merged.params, x)).count("scan[")
    assert loops == (3 if own else 1)


# ---- bad input


def test_errors_say_what_and_where():
    networks = mlps(3, 4)
    other = {
        **mlp_params(5),
        "b": normal(1, 8, 7),
        "c": normal(2, 7),
        "d": normal(3, 7, 3),
    }
    strange = Network(mlp, other, cj.trace(mlp, other, X))
    with pytest.raises(MismatchError, match=r"first group that differs: 'b:1' \(6\)"):
        cj.merge.average({"a": networks["a"], "b": strange}, {}, X)

    def tanh(p: Any, x: Any) -> Any:
        return jnp.tanh(mlp(p, x))

    with pytest.raises(MismatchError, match="do not compute alike"):
        cj.merge.average(
            {"a": networks["a"], "b": networks["b"]._replace(apply=tanh)}, {}, X
        )
    with pytest.raises(MismatchError, match="no network"):
        cj.merge.average({}, {}, X)
    apart = cj.merge.average(networks, SPLIT, X)
    with pytest.raises(
        KeepError, match=r"another sharing: '.*/a/d' is \[3, 3\], not \[6"
    ):
        cj.merge.least_squares(networks, {}, [X], merged=apart, progress=False)
    with pytest.raises(DataError, match="no data"):
        cj.merge.least_squares(networks, {}, [], progress=False)
    with pytest.raises(DataError, match=r"'a' .* NaN"):
        cj.merge.least_squares(networks, {}, [X * np.nan], progress=False)


def test_a_sharing_may_be_lists():
    networks = mlps(3, 4)
    lists = {g: {n: s.tolist() for n, s in v.items()} for g, v in SPLIT.items()}
    merged = [cj.merge.average(networks, sharing, X) for sharing in (SPLIT, lists)]
    found, want = (m.apply(m.params, X) for m in merged)
    jax.tree.map(np.testing.assert_array_equal, found, want)
    assert cj.merge.own_widths(lists) == cj.merge.own_widths(SPLIT)


def test_means_of_double_precision_are_made_in_it():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), mlp_params(0))
        x = X.astype(jnp.float64)
        net = Network(mlp, params, cj.trace(mlp, params, x))
        found = cj.merge.average({"a": net, "b": net}, {}, x).params["params"]
        np.testing.assert_array_equal(found["shared"]["b"], params["b"])
        np.testing.assert_array_equal(found["reads"]["a"]["d"], params["d"])
        assert found["shared"]["b"].dtype == found["reads"]["a"]["d"].dtype == x.dtype


def leaky(slope: float) -> Any:
    return lambda p, x: jax.nn.leaky_relu(x @ p["a"], slope) @ p["b"]


def shifted(mean: Any) -> Any:
    return lambda p, x: jax.nn.relu((x - mean) @ p["a"]) @ p["b"]


def centred(axis: int) -> Any:
    return lambda p, x: jax.nn.relu((x - x.mean(axis, keepdims=True)) @ p["a"]) @ p["b"]


def turned(back: bool) -> Any:
    def apply(p: Any, x: Any) -> Any:
        h, g = x @ p["a"], jnp.sin(x) @ p["a"]
        return (h - g if back else g - h) @ p["b"]

    return apply


CONSTANT = np.arange(5, dtype=np.float32)


@pytest.mark.parametrize(
    ("make", "values", "said"),
    [
        (leaky, (0.01, 0.3), r"test_merge.py:\d+ .*with 0.01 against 0.3"),
        (shifted, (CONSTANT, CONSTANT + (CONSTANT > 3)), r"4.0 \(entry \[4\].*5.0"),
        (centred, (0, 1), r"axes=\(0,\) against axes=\(1,\)"),
        (turned, (True, False), "one operand against another"),
    ],
)
def test_functions_differ_only_where_nothing_is_shared(make, values, said):
    """The shared side is computed as the first of those that share does."""
    networks = {}
    for i, value in enumerate(values):
        params = {"a": normal(i, 5, 8), "b": normal(9 + i, 8, 3)}
        apply = make(value)
        networks["pq"[i]] = Network(apply, params, cj.trace(apply, params, X))
    with pytest.raises(MismatchError, match=said):
        cj.merge.average(networks, {}, X)
    networks["r"] = networks["q"]._replace(apply=make(copy.copy(values[1])))
    own, stay = np.full(8, OWN), np.arange(8)
    for those in (own, stay):
        sharing = {"a:1": {"p": own, "q": those, "r": those}}
        merged = cj.merge.average(networks, sharing, X)
        for name, y in merged.apply(merged.params, X).items():
            alike(y, networks[name].apply(networks[name].params, X))


def test_attention_is_shared_whole_or_not_at_all():
    net = NETS["nnx_transformer"]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    networks = {n: Network(net.apply, net.params, graph) for n in "ab"}
    split = {
        g.name: {
            n: np.where(np.arange(g.size) == 0, OWN, np.arange(g.size)) for n in "ab"
        }
        for g in graph.free
    }
    with pytest.raises(KeepError, match="cannot be shared in part"):
        cj.merge.average(networks, split, net.inputs)
