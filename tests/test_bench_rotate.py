"""What turning a residual stream before the cut is worth, on a small language model.

    pytest tests/test_bench_rotate.py -m slow --benchmark-enable -s  # 6 min, two cores

A decoder (4 layers of 96 channels, RMSNorm, rotary positions, a head of its own) learns
the sources of Python's standard library for 700 steps. Channels of its stream are cut:
at random, the least by `joint` scores, and after `rotate`; all are compensated on 512
rows of 64 words. Kullback-Leibler divergence from the parent on rows never seen, in
nats per word. Without `--benchmark-enable` a few steps are enough to see that it runs.
"""

from __future__ import annotations

import collections
import re
import sysconfig
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cutjax as cj
from cutjax.recover import leading, rotate

WORDS, WIDTH, LAYERS, HEADS, LENGTH = 4000, 96, 4, 4, 64
EACH = WIDTH // HEADS
CALIBRATION, TEST = 512, 400


def rows() -> np.ndarray:
    """Sources as rows of word numbers, in random order; 0 is any rare word."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py"))[:900]
    text = "\n".join(file.read_text(errors="ignore") for file in files)
    words = re.findall(r"[A-Za-z_]+|\d+|\n *|[^\sA-Za-z_0-9]", text)
    common = collections.Counter(words).most_common(WORDS - 1)
    number = {word: i for i, (word, _) in enumerate(common, start=1)}
    ids = np.array([number.get(word, 0) for word in words], np.int32)
    whole = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
    return np.random.default_rng(0).permutation(whole)


def start(key: jax.Array) -> dict[str, Any]:
    keys = iter(jax.random.split(key, 100))

    def kernel(*shape: int, scale: float = 1.0) -> jax.Array:
        return scale * jax.random.normal(next(keys), shape) / np.sqrt(shape[0])

    params: dict[str, Any] = {"norm": jnp.ones(WIDTH), "head": kernel(WIDTH, WORDS)}
    params["embed"] = 0.1 * jax.random.normal(next(keys), (WORDS, WIDTH))
    for i in range(LAYERS):
        params[f"layer{i}"] = {
            **{name: kernel(WIDTH, HEADS, EACH) for name in "qkv"},
            **{name: kernel(WIDTH, 4 * WIDTH) for name in ("up", "gate")},
            "out": kernel(HEADS, EACH, WIDTH, scale=0.3 / np.sqrt(EACH)),
            "down": kernel(4 * WIDTH, WIDTH, scale=0.3),
            **{name: jnp.ones(WIDTH) for name in ("norm1", "norm2")},
        }
    return params


def rms(x: Any, scale: Any) -> Any:
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale


def rotary(x: Any) -> Any:
    angles = jnp.arange(LENGTH)[:, None] / 1e4 ** (np.arange(0, EACH, 2) / EACH)
    a, b = x[..., : EACH // 2], x[..., EACH // 2 :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def apply(params: Any, ids: Any) -> dict[str, Any]:
    x = params["embed"][ids]
    before = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
    for i in range(LAYERS):
        p = params[f"layer{i}"]
        y = rms(x, p["norm1"])
        q, k, v = (jnp.einsum("bsd,dhe->bhse", y, p[name]) for name in "qkv")
        logits = jnp.einsum("bhse,bhte->bhst", rotary(q), rotary(k)) / np.sqrt(EACH)
        seen = jax.nn.softmax(jnp.where(before, logits, -1e9))
        x += jnp.einsum("bhst,bhte,hed->bsd", seen, v, p["out"])
        y = rms(x, p["norm2"])
        x += (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
    return {"word": rms(x, params["norm"]) @ params["head"]}


def loss(logits: Any, ids: Any) -> Any:
    """Of the next word."""
    each = optax.softmax_cross_entropy_with_integer_labels
    return each(logits[..., :-1, :], ids[..., 1:]).mean()


def trained(data: np.ndarray, steps: int) -> Any:
    params = start(jax.random.key(0))
    rate = optax.cosine_onecycle_schedule(max(steps, 10), 3e-3)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))

    @jax.jit
    def step(params: Any, state: Any, ids: Any) -> tuple[Any, Any]:
        slope = jax.grad(lambda p: loss(apply(p, ids)["word"], ids))(params)
        change, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, change), state

    state, rng = optimizer.init(params), np.random.default_rng(1)
    for _ in range(steps):
        params, state = step(params, state, data[rng.integers(len(data), size=32)])
    return params


@pytest.mark.slow
def test_a_turned_stream_loses_less(request: Any) -> None:
    real = request.config.getoption("--benchmark-enable")
    data = rows()
    test, some, train = np.split(data, [TEST, TEST + CALIBRATION])
    test = test if real else test[:8]
    params = trained(train, 700 if real else 3)
    batches = [(x,) for x in np.split(some, 16)][: None if real else 1]
    graph = cj.trace(apply, params, batches[0][0])
    (stream,) = (g for g in graph.free if g.name == "embed:1")
    scores = cj.saliency(
        *(apply, params, graph, {"word": loss}),
        [(x, {"word": x}) for (x,) in batches],
        progress=False,
    )
    found = rotate(apply, params, graph, batches, progress=False)
    answer = jax.jit(apply)

    @jax.jit
    def apart(got: Any, want: Any) -> Any:
        got, want = jax.nn.log_softmax(got), jax.nn.log_softmax(want)
        return (jnp.exp(want) * (want - got)).sum(-1).mean()

    def lost(params: Any, keep: Any) -> tuple[float, float]:
        small, cut = cj.cut(apply, params, graph, keep)
        full = apply, params, graph, keep
        fitted, _ = cj.compensate(*full, batches, progress=False)
        each = [
            [
                apart(small(p, x)["word"], answer(params, x)["word"])
                for x in np.split(test, 4)
            ]
            for p in (cut, fitted)
        ]
        return tuple(map(float, np.mean(each, 1)))

    order = np.argsort(-np.asarray(scores["word"][stream.name]))
    chance = np.random.default_rng(0).permutation(WIDTH)
    for share in (0.75, 0.5):
        kept = round(share * WIDTH)
        line = {}
        for name, best in (("random", chance), ("joint", order)):
            keep = {stream.name: np.isin(np.arange(WIDTH), best[:kept])}
            line[name] = lost(params, keep)
        line["turned"] = lost(found.params, leading(found, keep))
        shown = ", ".join(f"{k} {a:.3f} / {b:.3f}" for k, (a, b) in line.items())
        print(f"\n{share:g} of the stream, as cut / compensated, in nats: {shown}")
        assert not real or line["turned"][1] < min(line["random"][1], line["joint"][1])
