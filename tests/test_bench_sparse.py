"""What masks cost: a masked step beside the plain step of the same optimiser.

    pytest tests/test_bench_sparse.py -m slow --benchmark-enable -s   # 2 min

Masks make nothing faster. Without `--benchmark-enable` each is run once, as a check
that it runs, if slow tests are asked for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cutjax as cj
from cutjax import sparse
from cutjax.models import MultiTaskResNet, eval_apply, init

TASKS = {"age": 10, "smile": 2}
BATCH = 32


def optimisers(params: Any, graph: cj.Graph) -> dict[str, Any]:
    masks = sparse.topk(jax.tree.map(jnp.abs, sparse.prunable(params, graph)), 0.1)
    keep = {g: np.arange(graph[g].size) % 2 == 0 for g in sparse.growable(graph)}
    rigl, channels = sparse.rigl(1000), sparse.channel_rigl(graph, 1000)
    # The first change is far away: `due` is asked, what it guards is not run.
    later: Any = {"every": 100, "start": 10**6}
    adam = optax.adamw(1e-3)
    return {
        "plain": adam,
        "masked": sparse.masked(adam, masks),
        "rigl": sparse.scheduled(adam, rigl, masks, **later),
        "rigl, every step": sparse.scheduled(adam, rigl, masks, every=1),
        "channels": sparse.scheduled_channels(adam, graph, channels, keep, **later),
    }


@pytest.fixture(scope="module")
def case(request: Any) -> dict[str, dict[str, Callable[[], Any]]]:
    """Compiled updates alone, and whole training steps, by optimiser."""
    x = np.random.default_rng(0).normal(size=(BATCH, 16, 16, 3)).astype(np.float32)
    widths = (
        (64, 128)
        if "--benchmark-enable" in request.config.invocation_params.args
        else (8, 16)
    )
    model = MultiTaskResNet(TASKS, widths=widths, blocks=(1, 1))
    apply, params = eval_apply(model), init(model, x)
    graph = cj.trace(apply, params, x)

    def loss(params: Any) -> jax.Array:
        return sum(jnp.mean(v**2) for v in apply(params, x).values())

    out: dict[str, dict[str, Callable[[], Any]]] = {"update": {}, "step": {}}
    for name, tx in optimisers(params, graph).items():

        def update(grads: Any, state: Any, params: Any, tx: Any = tx) -> Any:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        def step(_: Any, state: Any, params: Any, update: Any = update) -> Any:
            return update(jax.grad(loss)(params), state, params)

        args = (jax.tree.map(jnp.ones_like, params), tx.init(params), params)
        for kind, fn in (("update", update), ("step", step)):
            done = jax.jit(fn).lower(*args).compile()
            out[kind][name] = lambda done=done, args=args: jax.block_until_ready(
                done(*args)
            )
    return out


def elapsed(fn: Callable[[], Any]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["update", "step"])
def test_speed_of_masked_steps_beside_plain_ones(benchmark, case, kind):
    rounds = 12 if benchmark.enabled else 1

    def ratios() -> dict[str, float]:
        for fn in case[kind].values():
            fn()
        # Interleaved, for the machine is shared.
        times: dict[str, list[float]] = {name: [] for name in case[kind]}
        for _ in range(rounds):
            for name, fn in case[kind].items():
                times[name].append(elapsed(fn))
        middle = {name: statistics.median(t) for name, t in times.items()}
        return {name: t / middle["plain"] for name, t in middle.items()}

    found = benchmark.pedantic(ratios, rounds=1, iterations=1)
    benchmark.extra_info.update(found)
    shown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in found.items())
    print(f"\n{kind} / plain {kind} (adamw, batch {BATCH}): {shown}")
    assert all(ratio > 0 for ratio in found.values())
    if benchmark.enabled:
        limit = {"update": 8, "step": 2}[kind]
        assert found["masked"] < limit and found["rigl"] < limit
