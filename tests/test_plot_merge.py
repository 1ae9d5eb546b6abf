"""Pictures of a merge say which channels were matched and what each subset costs."""

import doctest
import importlib
import io
from itertools import combinations

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

import cutjax as cj
from cutjax import merge, plot
from cutjax.errors import DataError, KeepError

F32 = jnp.float32


def texts(fig: Figure) -> list[str]:
    return [t.get_text() for t in fig.findobj(matplotlib.text.Text) if t.get_text()]


def drawn(fig: Figure) -> None:
    # At its own resolution: extents of texts are asked for afterwards.
    fig.savefig(io.BytesIO(), dpi="figure")


def disordered(sizes: dict[str, int], networks: int):
    """Correlations of networks that make the same features in different orders."""
    rng = np.random.default_rng(0)
    found, orders = {}, {f"net{i}": {} for i in range(networks)}
    for group, n in sizes.items():
        features, noise = rng.normal(size=(500, n)), np.linspace(0, 3, n)
        heard = []
        for order in orders.values():
            order[group] = rng.permutation(n)
            made = np.empty((500, n))
            made[:, order[group]] = features + noise * rng.normal(size=(500, n))
            heard.append(made)
        found[group] = np.corrcoef(np.concatenate(heard, 1).T)
    return found, orders


def test_matches_stand_on_the_diagonal_the_best_first():
    found, orders = disordered({"params/a/kernel:1": 12, "params/b/kernel:1": 5}, 3)
    fig = plot.matches(found, orders, pair=("net0", "net2"))
    for column, (group, n) in enumerate({"a": 12, "b": 5}.items()):
        name = f"params/{group}/kernel:1"
        block = found[name][:n, 2 * n :]
        before, after = (
            np.asarray(fig.axes[row * 2 + column].images[0].get_array())
            for row in (0, 1)
        )
        np.testing.assert_allclose(np.sort(before, None), np.sort(block, None))
        np.testing.assert_allclose(np.sort(after, None), np.sort(block, None))
        pairs = block[orders["net0"][name], orders["net2"][name]]
        np.testing.assert_allclose(np.diag(after), np.sort(pairs)[::-1])
        np.testing.assert_allclose(np.sort(np.diag(before)), np.sort(np.diag(block)))
        # A row is the same channel in both: it has the same numbers in another order.
        np.testing.assert_allclose(np.sort(before, 1), np.sort(after, 1))
        curves = [line.get_ydata() for line in fig.axes[4 + column].lines[:2]]
        np.testing.assert_allclose(curves[1], np.diag(after))
        np.testing.assert_allclose(curves[0], np.sort(np.diag(before))[::-1])
        said = f"mean {np.diag(block).mean():.2f} → {pairs.mean():.2f}"
        assert {said, f"{group}\n{n} channels"} <= set(texts(fig))
    assert {"correlation", "channels of net2"} <= set(texts(fig))


def test_matches_of_an_alignment_reach_the_means_that_it_reports():
    def apply(w, x):
        return jax.nn.relu(x @ w["a"]) @ w["b"]

    keys = jax.random.split(jax.random.key(0), 5)
    nets = {
        name: {"a": jax.random.normal(k, (4, 16)), "b": jax.random.normal(m, (16, 1))}
        for name, k, m in zip(("one", "two"), keys[:2], keys[2:4], strict=True)
    }
    data = [jax.random.normal(keys[4], (64, 4))]
    graph = cj.trace(apply, nets["one"], data[0])
    given = dict(apply=apply, batches=data, progress=False)
    orders, info = merge.align_all(graph, nets, **given)
    found = merge.correlations(apply, graph, nets, data, progress=False)
    was, now = info["two"].before["a:1"], info["two"].after["a:1"]
    assert f"mean {was:.2f} → {now:.2f}" in texts(plot.matches(found, orders))


@pytest.mark.parametrize("groups", [1, 3, 7])
def test_matches_of_many_groups_do_not_overlap(groups):
    sizes = {f"encoder/layer_{i}_projection/kernel:1": 4 + i for i in range(groups)}
    found, orders = disordered(sizes, 2)
    fig = plot.matches(found, orders)
    drawn(fig)
    bounds = [ax.get_tightbbox() for ax in fig.axes]
    assert len(bounds) == 3 * groups + 1
    for a, b in combinations([box.shrunk(0.99, 0.97) for box in bounds if box], 2):
        assert not a.overlaps(b)


def test_matches_say_what_to_pass():
    found, orders = disordered({"a:1": 4}, 2)
    with pytest.raises(DataError, match=r"merge\.correlations"):
        plot.matches({}, orders)
    with pytest.raises(DataError, match="of 3 networks"):
        plot.matches(found, {**orders, "third": {}})
    with pytest.raises(DataError, match="not finite"):
        plot.matches({"a:1": np.full((8, 8), np.nan)}, orders)
    with pytest.raises(KeepError, match="two networks"):
        plot.matches(found, {"net0": {}})
    with pytest.raises(KeepError, match="no network 'net7'"):
        plot.matches(found, orders, pair=("net0", "net7"))
    with pytest.raises(KeepError, match="no order of 4"):
        plot.matches(found, {"net0": {}, "net1": {"a:1": np.zeros(4, int)}})


def tasks_of(own: dict[str, int]):
    """A stem for all tasks and a layer of another width for each, and one network."""

    def apply(w, x):
        h = x @ w["stem"]
        return {task: h @ w[task]["up"] @ w[task]["out"] for task in own}

    def single(w, x):
        return x @ w["stem"] @ w["up"] @ w["out"]

    def shape(*size):
        return jax.ShapeDtypeStruct(size, F32)

    w = {t: {"up": shape(10, n), "out": shape(n, 2)} for t, n in own.items()}
    x, stem = shape(1, 6), shape(6, 10)
    one = {"stem": stem, "up": shape(10, 5), "out": shape(5, 2)}
    return cj.trace(apply, {"stem": stem, **w}, x), cj.trace(single, one, x)


def bars(fig: Figure) -> dict[str, np.ndarray]:
    return {
        c.get_label(): np.array([p.get_height() for p in c])
        for c in fig.axes[0].containers
    }


def test_bars_are_what_the_graph_counts():
    own = {"a": 5, "b": 3, "c": 7}
    graph, one = tasks_of(own)
    fig = plot.subset_costs(graph, dict.fromkeys(own, one))
    found = bars(fig)
    subsets = [s for k in (1, 2, 3) for s in combinations(own, k)]
    unit = one.cost().flops
    assert unit == 2 * (60 + 50 + 10)
    np.testing.assert_allclose(found["merged, several tasks"], 120 / unit)
    for task, n in own.items():
        expected = [2 * 12 * n / unit * (task in s) for s in subsets]
        np.testing.assert_allclose(found[f"merged, {task} alone"], expected)
    separate = found.pop("separate")
    np.testing.assert_allclose(separate, [len(s) for s in subsets])
    total = [graph.cost(tasks=s).flops / unit for s in subsets]
    np.testing.assert_allclose(sum(found.values()), total)
    assert [t.get_text() for t in fig.axes[0].texts] == [f"{n:.2f}" for n in total]
    assert any("1 = one network, 120" in text for text in texts(fig))
    dark = matplotlib.colors.to_rgba(plot.style.NOBODY)
    for row, task in enumerate(own):
        colours = fig.axes[1].collections[row].get_facecolors()
        shown = [not np.allclose(colour, dark) for colour in colours]
        assert shown == [task in s for s in subsets]


def test_more_than_five_tasks_are_drawn_by_their_number():
    own = {f"task{i}": 2 + i for i in range(6)}
    graph, one = tasks_of(own)
    fig = plot.subset_costs(graph, dict.fromkeys(own, one))
    found = bars(fig)
    for k in range(1, 7):
        costs = [graph.cost(tasks=s).flops for s in combinations(own, k)]
        merged = found["merged, several tasks"] + found["merged, one task alone"]
        assert merged[k - 1] == pytest.approx(np.mean(costs) / one.cost().flops)
        assert found["separate"][k - 1] == pytest.approx(k)
        ends = fig.axes[0].collections[0].get_segments()[k - 1][:, 1]
        np.testing.assert_allclose(ends * one.cost().flops, [min(costs), max(costs)])


def test_what_some_tasks_share_is_not_run_for_the_others():
    own = {"a": 5, "b": 3, "c": 7}
    graph, one = tasks_of(own)

    def apply(w, x):
        h = x @ w["stem"]
        left = h @ w["a"]["up"]
        out = {"a": left @ w["a"]["out"], "b": left.sum(1, keepdims=True)}
        return {**out, "c": h @ w["c"]["up"] @ w["c"]["out"]}

    w = {task: {} for task in own}
    for path, leaf in graph.shapes.items():
        task, _, name = path.partition("/")
        w |= {task: {**w[task], name: leaf}} if name else {task: leaf}
    both = cj.trace(apply, w, jax.ShapeDtypeStruct((1, 6), F32))
    found = bars(plot.subset_costs(both, dict.fromkeys(own, one)))
    subsets = [s for k in (1, 2, 3) for s in combinations(own, k)]
    unit = one.cost().flops
    expected = [(120 + 100 * (s != ("c",))) / unit for s in subsets]
    np.testing.assert_allclose(found["merged, several tasks"], expected)
    del found["separate"]
    total = [both.cost(tasks=s).flops / unit for s in subsets]
    np.testing.assert_allclose(sum(found.values()), total)


def test_a_network_of_several_tasks_runs_once():
    def apply(w, x):
        h = jax.nn.relu(x @ w["stem"])
        return {"a": h @ w["a"], "b": h @ w["b"]}

    w = {"stem": jnp.ones((4, 8)), "a": jnp.ones((8, 2)), "b": jnp.ones((8, 6))}
    x = jnp.ones((1, 4))
    net = merge.Network(apply, w, cj.trace(apply, w, x))
    merged = merge.average({"one": net, "two": net}, {}, x)
    both = cj.trace(merged.apply, merged.params, x)
    found = bars(plot.subset_costs(both, {"one": net.graph, "two": net.graph}))
    tasks = [f"{name}/{task}" for name in ("one", "two") for task in "ab"]
    names = [s for k in range(1, 5) for s in combinations(tasks, k)]
    separate = dict(zip(names, found.pop("separate") * 96, strict=True))
    assert separate["one/a",] == pytest.approx(32 + 16)
    assert separate["one/a", "one/b"] == pytest.approx(96)
    assert separate["one/a", "two/a"] == pytest.approx(2 * 48)
    total = dict(zip(names, sum(found.values()) * 96, strict=True))
    assert total["one/a", "two/a"] == pytest.approx(32 + 2 * 16)
    assert total[tuple(tasks)] == pytest.approx(32 + 2 * 64)


def test_bars_of_a_merged_network_whose_networks_differ_in_their_heads():
    def apply(w, x):
        return jax.nn.relu(x @ w["a"]) @ w["b"]

    x, nets = jnp.ones((1, 4)), {}
    for name, classes in {"many": 6, "few": 2}.items():
        w = {"a": jnp.ones((4, 8)), "b": jnp.ones((8, classes))}
        nets[name] = merge.Network(apply, w, cj.trace(apply, w, x))
    merged = merge.average(nets, {}, x)
    both = cj.trace(merged.apply, merged.params, x)
    found = bars(plot.subset_costs(both, {n: net.graph for n, net in nets.items()}))
    one = (4 * 8 + 8 * 2 + 4 * 8 + 8 * 6) / 2
    np.testing.assert_allclose(found["merged, several tasks"], 32 / one)
    np.testing.assert_allclose(found["merged, few alone"], [0, 16 / one, 16 / one])
    np.testing.assert_allclose(found["separate"], [80 / one, 48 / one, 2])


@pytest.mark.parametrize("tasks", [2, 5, 6, 12])
def test_labels_of_subsets_do_not_overlap_and_fit(tasks):
    own = {f"speaker_{i}": 5 for i in range(tasks)}
    graph, one = tasks_of(own)
    fig = plot.subset_costs(graph, dict.fromkeys(own, one))
    drawn(fig)
    boxes = [t.get_window_extent().shrunk(0.95, 0.9) for t in fig.axes[0].texts]
    assert len(boxes) == (2**tasks - 1 if tasks < 6 else tasks)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    legend = fig.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= fig.bbox.width


def test_costs_say_what_to_pass():
    graph, one = tasks_of({"a": 5, "b": 3})
    with pytest.raises(DataError, match="'b' is of no network"):
        plot.subset_costs(graph, {"a": one})
    with pytest.raises(DataError, match="2 to 12 tasks"):
        plot.subset_costs(one, {"output": one})


def test_nothing_global_is_touched():
    from matplotlib import pyplot

    graph, one = tasks_of({"a": 5, "b": 3})
    found, orders = disordered({"a:1": 4}, 2)
    plot.matches(found, orders), plot.subset_costs(graph, {"a": one, "b": one})
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("name", ["merge", "subsets"])
def test_doctests(name):
    done = doctest.testmod(importlib.import_module(f"cutjax.plot.{name}"))
    assert done.attempted > 0 and done.failed == 0
