"""Nets of complex numbers: scores that know phases, and what is not refitted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cutjax as cj

GROUP = "a:1"
RNG = np.random.default_rng(0)


def numbers(*shape: int) -> jax.Array:
    parts = RNG.normal(size=(2, *shape)).astype(np.float32)
    return jnp.asarray(parts[0] + 1j * parts[1])


PARAMS = {"a": numbers(5, 8), "b": numbers(8, 3), "c": numbers(3)}
X = numbers(2048, 5)


def net(params, x):
    h = x @ params["a"]
    h = h * jax.nn.sigmoid(jnp.abs(h) - 1)
    out = h @ params["b"] + params["c"]
    return {"y": jnp.concatenate([out.real, out.imag], -1)}


def loss(out, y):
    return ((out - y) ** 2).sum()


def score(name, params=PARAMS):
    graph = cj.trace(net, params, X[:1])
    data = [(X, {"y": net(PARAMS, X)["y"] + 1})]
    options = {"criterion": name, "progress": False}
    found = cj.saliency(net, params, graph, {"y": loss}, data, **options)
    return np.asarray(found["y"][GROUP])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name",
    "joint taylor fisher gram hessian reconstruction wanda l1 l2 linf "
    "mean_activation".split(),
)
def test_a_phase_of_a_channel_does_not_matter(name):
    """What is written at another phase and read back from it is the same channel."""
    phase = jnp.exp(3j * jnp.asarray(RNG.normal(size=8), jnp.float32))
    turned = {**PARAMS, "a": PARAMS["a"] * phase, "b": PARAMS["b"] / phase[:, None]}
    np.testing.assert_allclose(score(name, turned), score(name), rtol=1e-3)


def test_joint_equals_what_the_best_refit_leaves():
    """Channels that go cost what least squares without them cannot rebuild."""
    h = np.asarray(X @ PARAMS["a"], np.complex128)
    h = h / (1 + np.exp(1 - np.abs(h)))
    made = h @ np.asarray(PARAMS["b"])

    def cost(gone: tuple[int, ...]) -> float:
        left = np.delete(h, gone, 1)
        rest = made - left @ np.linalg.lstsq(left, made, rcond=None)[0]
        return (np.abs(rest) ** 2).sum(1).mean()

    scores, gone, before = score(cj.criteria.joint(damping=1e-7)), (), 0.0
    order = np.argsort(scores)
    for channel in order[:3]:
        costs = {i: cost((*gone, i)) for i in range(8) if i not in gone}
        assert channel == min(costs, key=lambda i: costs[i])
        rise = costs[channel] - before
        assert scores[channel] == pytest.approx(rise, rel=0.1)
        gone, before = (*gone, int(channel)), costs[channel]


def test_sizes_are_of_the_whole_number():
    params = {
        "a": jnp.asarray([[5j, 1]], jnp.complex64),
        "b": jnp.asarray([[5j], [1]], jnp.complex64),
    }
    graph = cj.trace(lambda p, x: jnp.abs(x @ p["a"] @ p["b"]), params, X[:1, :1])
    for name in ("l1", "l2", "linf"):
        found = cj.saliency(None, params, graph, None, None, criterion=name)
        np.testing.assert_allclose(found["output"][GROUP], [5, 1])


def spectral(params, x):
    kernel = params["real"] + 1j * params["imag"]
    modes = jnp.einsum("bkc,cok->bko", jnp.fft.rfft(x @ params["a"], axis=1), kernel)
    return jnp.fft.irfft(modes, axis=1) @ params["b"]


@pytest.mark.parametrize("apply", [net, spectral])
def test_complex_kernels_stay_as_cut_and_a_warning_names_them(apply):
    real = {
        "a": jnp.asarray(RNG.normal(size=(5, 8)), jnp.float32),
        **{k: jnp.asarray(RNG.normal(size=(8, 6, 4))) for k in ("real", "imag")},
        "b": jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32),
    }
    params, x = (PARAMS, X) if apply is net else (real, X.real.reshape(-1, 4, 5)[:60])
    if apply is spectral:
        x = jnp.concatenate([x, x[:, :2]], 1)
    graph = cj.trace(apply, params, x[:1])
    keep = {g.name: np.arange(g.size) < 4 for g in graph.free}
    child = cj.cut_params(params, graph, keep)
    names = "'b'" if apply is net else "'imag', 'real'"
    with pytest.warns(UserWarning, match=f"{names} stay as cut: they are complex"):
        fitted, fits = cj.compensate(apply, params, graph, keep, [x], progress=False)
    for name in ("b",) if apply is net else ("real", "imag"):
        assert jnp.array_equal(fitted[name], child[name])
        assert name not in {f.path for f in fits}


def test_a_permuted_copy_of_complex_numbers_is_found_and_averaged():
    order = np.array([3, 1, 7, 0, 2, 6, 4, 5])
    other = {**PARAMS, "a": PARAMS["a"][:, order], "b": PARAMS["b"][order]}
    graph = cj.trace(net, PARAMS, X[:1])
    given = {"one": PARAMS, "other": other}
    applies = dict.fromkeys(given, net)
    orders, _ = cj.merge.align_all(
        graph, given, apply=applies, batches=[X], progress=False
    )
    assert np.array_equal(order[orders["other"][GROUP]], np.arange(8))
    networks = {n: cj.merge.Network(net, p, graph) for n, p in given.items()}
    sharing = cj.merge.from_permutations(graph, orders)
    merged = cj.merge.average(networks, sharing, X[:1])
    for name, out in merged.apply(merged.params, X).items():
        want = net(PARAMS, X)["y"]
        np.testing.assert_allclose(out, want, rtol=1e-3, atol=1e-3, err_msg=name)
    apart = {**networks, "other": networks["other"]._replace(params=PARAMS)}
    leaves = jax.tree.leaves(cj.merge.average(apart, sharing, X[:1]).params)
    (mean,) = (v for v in leaves if v.shape == PARAMS["a"].shape)
    whole = (PARAMS["a"] + PARAMS["a"][:, np.argsort(order)]) / 2
    np.testing.assert_allclose(mean, whole, atol=1e-5)
    with pytest.warns(UserWarning, match="'a', 'b', 'c': complex, so averaged"):
        cj.merge.least_squares(networks, sharing, [X], progress=False)
