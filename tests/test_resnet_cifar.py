"""CIFAR's residual networks, and PyTorch weights in Flax: names, shapes, values."""

from __future__ import annotations

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cutjax as cj
from cutjax.errors import DataError, MismatchError
from cutjax.models import eval_apply, train_apply
from cutjax.models.importers import from_torch, read_npz
from cutjax.models.resnet_cifar import CifarResNet

WIDTHS = (4, 8, 12)
MODEL = CifarResNet(blocks=1, classes=3, widths=WIDTHS)
X = np.random.default_rng(5).normal(size=(2, 10, 10, 3)).astype(np.float32)


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """A `state_dict` of the small net, by the names of the published weights."""
    draw = np.random.default_rng(seed)
    out: dict[str, np.ndarray] = {}

    def conv(name: str, into: int, made: int) -> None:
        out[f"{name}.weight"] = draw.normal(size=(made, into, 3, 3)) / (9 * into) ** 0.5

    def norm(name: str, n: int) -> None:
        out[f"{name}.weight"] = draw.uniform(0.5, 1.5, n)
        out[f"{name}.bias"] = draw.normal(size=n) / 5
        out[f"{name}.running_mean"] = draw.normal(size=n) / 5
        out[f"{name}.running_var"] = draw.uniform(0.5, 1.5, n)

    conv("conv1", 3, WIDTHS[0])
    norm("bn1", WIDTHS[0])
    last = WIDTHS[0]
    for stage, width in enumerate(WIDTHS, 1):
        for i, into in ((1, last), (2, width)):
            conv(f"layer{stage}.0.conv{i}", into, width)
            norm(f"layer{stage}.0.bn{i}", width)
        last = width
    out["linear.weight"] = draw.normal(size=(3, last)) / last**0.5
    out["linear.bias"] = draw.normal(size=3)
    return {name: value.astype(np.float32) for name, value in out.items()}


def by_hand(w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The network as PyTorch's layers are defined, channels first, in float64."""
    w = {name: value.astype(np.float64) for name, value in w.items()}

    def conv(name: str, x: np.ndarray, stride: int = 1) -> np.ndarray:
        kernel = w[f"{name}.weight"]
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        high = (x.shape[2] - 1) // stride + 1
        out = np.zeros((len(x), len(kernel), high, high))
        for i in range(high):
            for j in range(high):
                a, b = i * stride, j * stride
                window = padded[:, :, a : a + 3, b : b + 3]
                out[:, :, i, j] = np.einsum("ncij,ocij->no", window, kernel)
        return out

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        kinds = ("running_mean", "running_var", "weight", "bias")
        mean, var, scale, bias = (w[f"{name}.{k}"][:, None, None] for k in kinds)
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    x = np.maximum(norm("bn1", conv("conv1", x.transpose(0, 3, 1, 2))), 0)
    for stage, width in enumerate(WIDTHS, 1):
        name, stride = f"layer{stage}.0", 2 if stage > 1 else 1
        y = np.maximum(norm(f"{name}.bn1", conv(f"{name}.conv1", x, stride)), 0)
        y = norm(f"{name}.bn2", conv(f"{name}.conv2", y))
        skip = np.zeros_like(y)
        first = (width - x.shape[1]) // 2
        skip[:, first : first + x.shape[1]] = x[:, :, ::stride, ::stride]
        x = np.maximum(y + skip, 0)
    return x.mean((2, 3)) @ w["linear.weight"].T + w["linear.bias"]


def test_an_npz_becomes_the_network_that_it_describes(tmp_path):
    np.savez(tmp_path / "w.npz", **arrays())
    variables = from_torch(MODEL, read_npz(tmp_path / "w.npz"), X)
    expected = by_hand(arrays(), X)
    found = MODEL.apply(variables, X)["label"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), X)
    assert jax.tree.structure(variables) == jax.tree.structure(dict(shapes))


@pytest.mark.parametrize("name", sorted(arrays()))
def test_saboteur_every_entry_counts(name):
    """Another value of any entry is another network: nothing is left unread."""
    changed = {**arrays(), name: arrays(seed=1)[name]}
    a, b = (from_torch(MODEL, w, X) for w in (arrays(), changed))
    apart = jax.tree.map(lambda p, q: float(np.abs(p - q).max()), a, b)
    assert sum(value > 0 for value in jax.tree.leaves(apart)) == 1
    assert np.abs(by_hand(changed, X) - by_hand(arrays(), X)).max() > 1e-4


@pytest.mark.parametrize("name", ["layer2.0.conv1.weight", "bn1.running_var"])
def test_what_is_missing_is_named(name):
    rest = {key: value for key, value in arrays().items() if key != name}
    with pytest.raises(MismatchError, match=f"'{name}' is missing"):
        from_torch(MODEL, rest, X)


def test_what_is_left_over_is_named_and_nothing_else_refused():
    counted = {**arrays(), "bn1.num_batches_tracked": np.array(7)}
    from_torch(MODEL, counted, X)
    more = {**arrays(), "layer3.1.conv1.weight": np.zeros((12, 12, 3, 3))}
    with pytest.raises(MismatchError, match=r"'layer3\.1\.conv1\.weight' has no place"):
        from_torch(MODEL, more, X)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("conv1.weight", (3, 3, 3, 4), r"\(4, 3, 3, 3\)"),  # already turned
        ("linear.weight", (12, 3), r"\(3, 12\)"),
        ("linear.weight", (3, 12, 1, 1), r"\(3, 12\)"),
        ("bn1.bias", (4, 1), r"\(4,\)"),
    ],
)
def test_another_shape_is_named_with_the_one_expected(name, shape, expected):
    with pytest.raises(MismatchError, match=f"'{name}' is .*, expected {expected}"):
        from_torch(MODEL, {**arrays(), name: np.zeros(shape)}, X)


def test_nan_and_files_that_are_none_are_refused(tmp_path):
    broken = {**arrays(), "bn1.weight": np.full(4, np.nan)}
    with pytest.raises(DataError, match=r"'bn1\.weight' holds NaN"):
        from_torch(MODEL, broken, X)
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "whole.npz", a=np.zeros(3))
    (tmp_path / "text.npz").write_text("no zip")
    (tmp_path / "part.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-40])
    for name in ("none.npz", "one.npy", "text.npz", "part.npz"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            read_npz(tmp_path / name)


def test_other_layers_are_not_guessed():
    from flax import linen as nn

    with pytest.raises(MismatchError, match="negative_slope is no leaf of"):
        from_torch(nn.PReLU(), {}, X)


def test_the_skip_is_cut_as_one_stream():
    """Channels of zeros in front move those that stay: the cut is the masked net."""
    apply, variables = eval_apply(MODEL), from_torch(MODEL, arrays(), X)
    graph = cj.trace(apply, variables, X)
    draw = np.random.default_rng(3)
    keep = {g.name: draw.permutation(g.size) >= g.size // 3 for g in graph.free}
    small_apply, small = cj.cut(apply, variables, graph, keep)
    masked = apply(cj.mask(variables, graph, keep), X)["label"]
    found = small_apply(small, X)["label"]
    np.testing.assert_allclose(found, masked, rtol=1e-4, atol=1e-5)
    # The stem's channels live in all three stages, wherever the skip puts them.
    stem = "params/conv1/kernel:3"
    assert {m.path for m in graph[stem].members} >= {
        "params/linear/kernel",
        "params/layer3_0/conv2/kernel",
    }
    one = {stem: np.array([True, False, True, True])}
    cut = cj.cut_params(variables, graph, one)["params"]
    gone = (WIDTHS[2] - WIDTHS[0]) // 2 + 1
    kernel = np.delete(variables["params"]["linear"]["kernel"], gone, 0)
    np.testing.assert_array_equal(cut["linear"]["kernel"], kernel)


def test_training_moves_the_statistics():
    variables = from_torch(MODEL, arrays(), X)
    outputs, updates = train_apply(MODEL)(variables, X)
    assert outputs["label"].shape == (2, 3)
    old = variables["batch_stats"]["bn1"]["mean"]
    new = updates["batch_stats"]["bn1"]["mean"]
    stem = variables["params"]["conv1"]["kernel"]
    made = jax.lax.conv_general_dilated(
        X, stem, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = 0.9 * old + 0.1 * jnp.mean(made, (0, 1, 2))
    np.testing.assert_allclose(new, expected, rtol=1e-4, atol=1e-6)


# Beside Torch-Pruning: what scripts/rivals counts and says. --------------------------


@pytest.fixture
def rivalry(monkeypatch):
    scripts = Path(__file__).parent.parent / "scripts"
    monkeypatch.syspath_prepend(str(scripts))
    return {
        name: importlib.import_module(f"rivalry.{name}")
        for name in ("ours", "page", "protocol")
    }


def test_one_count_of_multiply_adds_for_both_sides(rivalry):
    """Against cutjax's own count, which walks the jaxpr; whole, and cut at random."""
    count, widths = rivalry["protocol"].multiply_adds, rivalry["ours"].widths
    model = CifarResNet(blocks=3)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = dict(jax.eval_shape(model.init, jax.random.key(0), x))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    graph = cj.trace(eval_apply(model), params, x)
    full = rivalry["protocol"].full_widths(3)
    assert full == widths(params)
    assert 2 * count(full) == graph.cost().flops
    draw = np.random.default_rng(1)
    keep = {g.name: draw.permutation(g.size) >= g.size // 3 for g in graph.free}
    small = cj.cut_params(params, graph, keep)
    assert 2 * count(widths(small)) == graph.cost(keep).flops
    assert count(widths(small)) < count(full)


def test_the_rate_is_one_whose_neighbours_are_worse(rivalry):
    protocol = rivalry["protocol"]
    for best in range(len(protocol.RATES)):
        asked = []

        def reached(rate, best=best, asked=asked):
            asked.append(rate)
            return -abs(protocol.RATES.index(rate) - best)

        assert protocol.climb(reached) == protocol.RATES[best]
        start = protocol.RATES.index(protocol.MIDDLE)
        # No more rates than the way there and one beyond, on either side.
        assert len(set(asked)) <= abs(best - start) + 3
    assert protocol.climb(lambda rate: 0.0) == protocol.MIDDLE


def row(side: str, stage: str, seed: int = 0, **more) -> dict:
    same = {"net": "resnet20", "side": side, "stage": stage, "seed": seed}
    size = {"macs": 20e6, "full_macs": 40e6, "params": 1e5, "factor": 2.5}
    return {**same, **size, "method": f"m of {side}", **more}


def test_the_page_says_what_the_rows_say(rivalry, tmp_path):
    tuned = {"loss": "distil", "rate": 1e-3, "steps": 7}
    rows = [
        row("ours", "parent", test=81.0, re_estimated=79.0, machine="a machine"),
        *(row("ours", "start", s, cut=20.0, compensated=60.0 + s) for s in (0, 1)),
        *(row("theirs", "start", s, cut=30.0, re_estimated=35.0) for s in (0, 1)),
        *(row("ours", "final", s, test=70.0 + s, **tuned) for s in (0, 1)),
        *(row("theirs", "final", s, test=71.0 + s, **tuned) for s in (0, 1)),
    ]
    page = rivalry["page"].write(rows, tmp_path).read_text()
    spread = f"{np.std([0, 1], ddof=1):.2f}"
    assert "| as cut | 20.00 ± 0.00 | 30.00 ± 0.00 | -10.00 | Torch-Pruning |" in page
    assert f"| before training | 60.50 ± {spread} | 35.00 ± 0.00 | +25.50 | cut" in page
    # A point less, but two seeds are further apart than that: nobody wins.
    assert f"| 70.50 ± {spread} | 71.50 ± {spread} | -1.00 | even |" in page
    assert "a machine" in page and "2.000" in page
    one = [r for r in rows if r["seed"] == 0]
    assert "(one seed)" in rivalry["page"].write(one, tmp_path).read_text()
