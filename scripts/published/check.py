"""What is asked of one model: trace, cut at random, compare."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import cutjax as cj
from cutjax import dims

from .base import Model, Narrow, path_of
from .widths import same_widths

QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
"""Compiling takes longer than running here; of jaxlib 0.10, which is pinned."""
LIMIT = 1e-5
"""Largest difference that passes, relative to the largest value of an output."""
GRADIENT_LIMIT = 1e-3
"""The same for gradients, which normalisations condition worse."""


class WrongResult(Exception):
    """A cut model answers something else than its oracle."""


def check(model: Model, seed: int = 0, gradients: bool = False) -> dict[str, Any]:
    """Everything that the table says of a model, as fields of a `Row`.

    Raises:
        WrongResult: an output differs, has another shape or is not finite.
    """
    graph, seconds = traced(model)
    keep = random_keep(graph, seed)
    found = {
        "groups": len(graph.free),
        "channels": sum(g.size for g in graph.free),
        "pinned": len(graph.groups) - len(graph.free),
        "prunable": prunable(graph),
        "trace_ms": 1000 * seconds,
        "removed": 1 - graph.cost(keep).params / graph.cost().params,
        "masked": against_mask(model, graph, keep, gradients),
    }
    if model.narrow is not None:
        found |= against_narrow(model, model.narrow, graph, seed)
    if "narrow" not in found and not any(g.notes for g in graph.free):
        found["oracle"] = "no statistic"
    return found


def traced(model: Model) -> tuple[Any, float]:
    """The graph, and the seconds of the best of three warm traces."""
    cj.trace(model.apply, model.params, *model.inputs)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        graph = cj.trace(model.apply, model.params, *model.inputs)
        seconds.append(time.perf_counter() - start)
    return graph, min(seconds)


def prunable(graph: Any) -> float:
    """The share of parameters in leaves with at least one free group."""
    free = {g.name for g in graph.free}
    sizes = {name: int(np.prod(s.shape)) for name, s in graph.shapes.items()}
    held = sum(
        size
        for name, size in sizes.items()
        if any(leaf.name in free for a in graph.axes[name] for leaf in dims.leaves(a))
    )
    return held / sum(sizes.values())


def random_keep(graph: Any, seed: int, ratio: float = 0.4) -> dict[str, np.ndarray]:
    """Removes `ratio` of every free group over which no statistic runs."""
    rng = np.random.default_rng(seed)
    return {
        g.name: choose(rng, g.size, max(1, g.size - round(ratio * g.size)))
        for g in graph.free
        if not g.notes
    }


def choose(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """A mask [size] with `count` random positions kept."""
    kept = np.zeros(size, bool)
    kept[rng.permutation(size)[:count]] = True
    return kept


def run(fn: Any, *args: Any) -> Any:
    """The outputs of one compiled call."""
    return jax.jit(fn, compiler_options=QUICK)(*args)


def against_mask(model: Model, graph: Any, keep: Any, gradients: bool) -> float:
    """The difference between the cut function and the masked one."""
    small_apply, small = cj.cut(model.apply, model.params, graph, keep)
    masked = cj.mask(model.params, graph, keep)
    got = run(small_apply, small, *model.inputs)
    error = difference(got, run(model.apply, masked, *model.inputs))
    if not gradients:
        return error
    got = gradient(small_apply, small, *model.inputs)
    full = gradient(model.apply, masked, *model.inputs)
    difference(_vector(got), _vector(cj.cut_params(full, graph, keep)), GRADIENT_LIMIT)
    return error


def gradient(apply: Any, params: Any, *inputs: Any) -> Any:
    """Of a scalar of all outputs, by the parameters."""
    return run(jax.grad(weighed(apply), allow_int=True), params, *inputs)


def _vector(tree: Any) -> np.ndarray:
    """All leaves of numbers, end to end."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return np.concatenate([np.ravel(x) for x in leaves])


def weighed(apply: Any) -> Any:
    """A scalar of a function's outputs that weighs every one differently."""

    def scalar(*args: Any) -> jax.Array:
        total = jnp.zeros(())
        for y in jax.tree.leaves(apply(*args)):
            weights = jnp.sin(1.0 + jnp.arange(y.size, dtype=y.dtype))
            total = total + (jnp.tanh(y.ravel() / 2) * weights).sum()
        return total

    return scalar


def against_narrow(model: Model, narrow: Narrow, graph: Any, seed: int) -> Any:
    """The difference to the same published class configured narrower."""
    apply, shapes = narrow.build()
    widths = same_widths(graph, shapes, narrow.groups)
    if isinstance(widths, str):
        return {"oracle": widths}
    rng = np.random.default_rng(seed + 1)
    keep = {name: choose(rng, graph[name].size, n) for name, n in widths.items()}
    small_apply, small = cj.cut(model.apply, model.params, graph, keep)
    got = run(small_apply, small, *model.inputs)

    def kept(path: str, axis: int) -> np.ndarray:
        return np.flatnonzero(dims.kept(graph.axes[path][axis], keep))

    with narrow.constants(kept):
        own = narrow.adapt(_unused(small, shapes, graph))
        want = run(apply, own, *model.inputs)
    return {"narrow": difference(got, want), "oracle": "narrow"}


def _unused(params: Any, shapes: Any, graph: Any) -> Any:
    """Parameters that nothing reads get the sizes that the narrow class has."""
    found = jax.tree_util.tree_flatten_with_path(shapes)[0]
    named = {path_of(path): like.shape for path, like in found}

    def fit(path: Any, leaf: Any) -> Any:
        name = path_of(path)
        own = graph.reach[name] or leaf.shape == named[name]
        return leaf if own else jnp.zeros(named[name], leaf.dtype)

    return jax.tree_util.tree_map_with_path(fit, params)


def difference(got: Any, want: Any, limit: float = LIMIT) -> float:
    """The largest difference of an output, relative to its largest value.

    Raises:
        WrongResult: it is above the limit, or there is nothing to compare.
    """
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    worst = max(_difference(np.asarray(a), np.asarray(b)) for a, b in pairs)
    if not worst <= limit:
        raise WrongResult(f"differs by {worst:.1e} of the largest value")
    return worst


def _difference(got: np.ndarray, want: np.ndarray) -> float:
    if got.shape != want.shape:
        raise WrongResult(f"an output of shape {got.shape}, expected {want.shape}")
    if not np.isfinite(want).all():
        raise WrongResult("the oracle is not finite")
    if not want.size:
        return 0.0
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-3))
