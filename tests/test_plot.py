"""Pictures say what the numbers say, for every specimen and for many groups."""

import io

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from nets import NETS
from nets.turns import by_turns

import cutjax as cj
from cutjax import plot
from cutjax.errors import DataError, KeepError
from cutjax.plot.layers import layers
from cutjax.plot.style import cropped, group_colours, short

F32 = jnp.float32


def residual(p, x):
    """Two layers added, then two heads."""
    h = jax.nn.relu(x @ p["stem"]["kernel"])
    h = h + jax.nn.relu(h @ p["up"]["kernel"]) @ p["down"]["kernel"]
    return {"a": h @ p["head_a"]["kernel"], "b": h @ p["head_b"]["kernel"]}


@pytest.fixture(scope="module")
def small():
    shapes = {"stem": (3, 6), "up": (6, 8), "down": (8, 6), "head_a": (6, 2)}
    shapes["head_b"] = (6, 3)
    params = {n: {"kernel": jax.ShapeDtypeStruct(s, F32)} for n, s in shapes.items()}
    graph = cj.trace(residual, params, jax.ShapeDtypeStruct((1, 3), F32))
    rng = np.random.default_rng(0)
    scores = {
        t: {g.name: rng.random(g.size).astype(np.float32) for g in graph.free}
        for t in graph.tasks
    }
    budget = cj.Budget(params=0.5)
    allocate = cj.uniform
    return graph, scores, *cj.plan(graph, scores, budget=budget, allocate=allocate)


def deep(depth: int):
    """A chain of `depth` groups with long names, from shapes only."""
    names = [f"encoder/layer_{i:02d}_feed_forward_projection" for i in range(depth)]

    def apply(p, x):
        for name in names:
            x = x @ p[f"{name}/kernel"]
        return x @ p["head/kernel"]

    widths = [3, *(16 + 8 * (i % 5) for i in range(depth)), 2]
    params = {
        f"{name}/kernel": jax.ShapeDtypeStruct((widths[i], widths[i + 1]), F32)
        for i, name in enumerate([*names, "head"])
    }
    return cj.trace(apply, params, jax.ShapeDtypeStruct((1, 3), F32))


def texts(fig: Figure) -> list[str]:
    return [t.get_text() for t in fig.findobj(matplotlib.text.Text) if t.get_text()]


def drawn(fig: Figure, dpi="figure") -> None:
    # At its own resolution where extents of texts are asked for afterwards.
    fig.savefig(io.BytesIO(), dpi=dpi)


@pytest.mark.parametrize("name", by_turns(sorted(NETS), 8))
def test_every_specimen_has_a_picture(name):
    net = NETS[name]()
    graph = cj.trace(net.apply, *jax.eval_shape(lambda: (net.params, *net.inputs)))
    found = layers(graph)
    made = {g for layer in found for g in plot.layers.groups_of(layer.makes)}
    assert made >= {g.name for g in graph.free}
    order = {layer.path: i for i, layer in enumerate(found)}
    column = {layer.path: layer.column for layer in found}
    for layer in found:
        for source in layer.sources:
            assert order[source] < order[layer.path]
            assert column[source] < layer.column
    half = {g.name: np.arange(g.size) < -(-g.size // 2) for g in graph.free}
    drawn(plot.net(graph, half), dpi=30)


def test_layers_follow_the_flow_and_know_what_is_added(small):
    found = {layer.path: layer for layer in layers(small[0])}
    assert list(found)[:3] == ["stem/kernel", "up/kernel", "down/kernel"]
    assert [found[f"{n}/kernel"].column for n in ("stem", "up", "down")] == [1, 2, 3]
    assert found["down/kernel"].tied == "stem/kernel"
    assert found["up/kernel"].tied is None
    assert found["head_a/kernel"].sources == ("down/kernel",)


def test_layers_take_what_a_bias_shares_as_made():
    net = NETS["vit_linen"]()
    graph = cj.trace(net.apply, *jax.eval_shape(lambda: (net.params, *net.inputs)))
    found = {layer.path: layer for layer in layers(graph)}
    assert not any(path.endswith("bias") for path in found)
    attention = "params/MultiHeadDotProductAttention_0"
    columns = {found[f"{attention}/{n}/kernel"].column for n in ("query", "key")}
    assert columns == {found[f"{attention}/value/kernel"].column}
    assert found[f"{attention}/out/kernel"].column == columns.pop() + 1


def test_net_draws_heights_as_wide_as_the_groups(small):
    graph, _, keep, _ = small
    fig = plot.net(graph, keep, tasks="a")
    before, after = fig.axes
    up = plot.style.group_colours(g.name for g in graph.free)["up/kernel:1"]

    def height(ax):
        (block,) = (
            patch
            for patch in ax.patches
            if isinstance(patch, Rectangle)
            and matplotlib.colors.same_color(patch.get_facecolor(), up)
        )
        return block.get_height()

    kept = int(keep["up/kernel:1"].sum())
    assert kept < 8
    assert height(before) == pytest.approx(8)
    assert height(after) == pytest.approx(kept)
    assert f"up: 8 → {kept}" in texts(fig)
    cost = graph.cost(keep, tasks=("a",))
    assert any(t.startswith(f"after: {cost.params:,} param") for t in texts(fig))
    assert any("1 task" in t for t in texts(fig))


@pytest.mark.parametrize(("tasks", "outlines"), [(("a", "b"), 0), ("a", 2)])
def test_a_kernel_of_no_task_is_drawn_unless_some_task_goes(tasks, outlines):
    def apply(p, x):
        h = x @ p["up"]
        _ = h @ p["idle"]
        return {"a": h @ p["a"], "b": h @ p["b"]}

    p = {"up": jnp.ones((2, 8)), "idle": jnp.ones((8, 4))}
    p |= {"a": jnp.ones((8, 2)), "b": jnp.ones((8, 2))}
    fig = plot.net(cj.trace(apply, p, jnp.ones((1, 2))), tasks=tasks)
    dashed = [p for p in fig.axes[1].patches if p.get_linestyle() in ("--", "dashed")]
    assert len(dashed) == outlines


def test_scores_put_the_kept_first_and_rank_over_all_of_a_task(small):
    graph, scores, keep, _ = small
    fig = plot.scores(scores, graph, keep)
    every = np.concatenate([scores["a"][g.name] for g in graph.free])
    for ax, group in zip(fig.axes, graph.free, strict=False):
        cells = np.asarray(ax.images[0].get_array())
        assert cells.shape == (2, group.size)
        mine, mask = scores["a"][group.name], keep[group.name]
        rank = (every[None] < mine[:, None]).sum(1) / (len(every) - 1)
        kept = int(mask.sum())
        np.testing.assert_allclose(sorted(cells[0, :kept]), sorted(rank[mask]))
        np.testing.assert_allclose(sorted(cells[0, kept:]), sorted(rank[~mask]))
        size = f"{kept} of {group.size}" if kept < group.size else str(group.size)
        assert size in texts(fig)


def test_claims_and_widths_say_what_the_plan_says(small):
    *_, info = small
    fig = plot.claims(info)
    bars = {c.get_label(): [p.get_width() for p in c] for c in fig.axes[0].containers}
    assert set(bars) == {"several tasks", "a alone", "b alone", "nobody"}
    sizes = np.array([n for _, n in info.widths.values()])
    shared = np.array([c.shared for c in info.claims.values()])
    np.testing.assert_allclose(bars["several tasks"], shared / sizes)
    np.testing.assert_allclose(np.sum(list(bars.values()), 0), 1)
    full, kept = plot.widths(info).axes[0].containers
    assert [p.get_width() for p in full] == list(sizes)
    assert [p.get_width() for p in kept] == [k for k, _ in info.widths.values()]


def test_accuracies_leave_out_what_a_model_does_not_answer():
    fig = plot.accuracies({"parent": {"a": 97.5, "b": 90.0}, "small": {"a": 95.25}})
    heights = [[p.get_height() for p in c] for c in fig.axes[0].containers]
    assert heights == [[97.5, 90.0], [95.25]]
    assert {"97.5", "90.0", "95.2", "a", "b", "parent", "small"} <= set(texts(fig))
    with pytest.raises(DataError, match="percent"):
        plot.accuracies({})


@pytest.mark.parametrize("depth", [6, 40])
def test_labels_do_not_overlap(depth):
    graph = deep(depth)
    scores = cj.random(None, None, graph)
    keep, info = cj.plan(graph, scores, budget=cj.Budget(params=0.4))
    pictures = plot.scores(scores, graph, keep), plot.claims(info), plot.widths(info)
    for fig in (*pictures, plot.net(graph, keep)):
        drawn(fig)
        boxes = [
            t.get_window_extent().shrunk(0.95, 0.8)
            for t in fig.findobj(matplotlib.text.Text)
            if t.get_text() and t.get_visible() and "projection" in t.get_text()
        ]
        assert len(boxes) == depth
        assert not any(
            a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]
        )
        assert all(box.x0 >= 0 for box in boxes)


def test_nothing_global_is_touched(small):
    from matplotlib import pyplot

    graph, scores, keep, info = small
    plot.scores(scores, graph, keep), plot.claims(info), plot.net(graph)
    assert pyplot.get_fignums() == []


def test_errors_say_what_to_pass(small):
    graph, scores, _, _ = small
    with pytest.raises(DataError, match="saliency"):
        plot.scores({}, graph)
    with pytest.raises(KeepError, match="no task"):
        plot.net(graph, tasks="c")
    with pytest.raises(KeepError, match="not bool"):
        plot.scores(scores, graph, {"up/kernel:1": np.ones(3, bool)})
    with pytest.raises(DataError, match="kernel"):
        plot.net(
            cj.trace(
                lambda p, x: x * p["s"],
                {"s": jax.ShapeDtypeStruct((4,), F32)},
                jax.ShapeDtypeStruct((1, 4), F32),
            )
        )


def test_names_lose_what_they_share():
    names = ["params/enc/a/kernel:3", "params/enc/b/kernel:1", "params/head/kernel:1"]
    assert list(short(names).values()) == ["enc/a", "enc/b", "head"]
    assert short(["w1:1"]) == {"w1:1": "w1"}
    assert cropped("a" * 20 + "b" * 20, 11) == "aaaaa…bbbbb"
    assert len(set(group_colours(map(str, range(40))).values())) == 40
