"""What is asked of one model: trace, cut at random, compare."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import cutjax as cj
from cutjax import dims

from .base import Model
from .widths import same_widths

QUICK = {"xla_backend_optimization_level": 0}
"""Compiling takes longer than running here."""
LIMIT = 1e-5
"""Largest difference that passes, relative to the largest value of an output."""


@dataclass(frozen=True)
class Row:
    """One line of the table; `failure` is a refusal or what went wrong."""

    name: str
    package: str
    groups: int = 0
    channels: int = 0
    pinned: int = 0
    prunable: float = 0.0
    trace_ms: float = float("nan")
    cut: float = float("nan")
    removed: float = 0.0
    narrow: float = float("nan")
    oracle: str = ""
    failure: str = ""
    wrong: bool = False


def check(model: Model, seed: int = 0) -> dict[str, Any]:
    """Everything that the table says of a model, as the fields of a `Row`."""
    graph, seconds = traced(model)
    found = {
        "groups": len(graph.free),
        "channels": sum(g.size for g in graph.free),
        "pinned": len(graph.groups) - len(graph.free),
        "prunable": prunable(graph),
        "trace_ms": 1000 * seconds,
    }
    keep = random_keep(graph, seed)
    found["cut"] = against_mask(model, graph, keep)
    found["removed"] = 1 - graph.cost(keep).params / graph.cost().params
    if model.narrow is None:
        found["oracle"] = "mask"
        return found
    found |= against_narrow(model, graph, seed)
    return found


def traced(model: Model) -> tuple[Any, float]:
    """The graph, and the seconds of a second, warm trace."""
    cj.trace(model.apply, model.params, *model.inputs)
    start = time.perf_counter()
    graph = cj.trace(model.apply, model.params, *model.inputs)
    return graph, time.perf_counter() - start


def prunable(graph: Any) -> float:
    """The share of parameters in leaves with at least one free group."""
    free = {g.name for g in graph.free}
    sizes = {name: int(np.prod(s.shape)) for name, s in graph.shapes.items()}
    held = sum(
        size
        for name, size in sizes.items()
        if any(leaf.name in free for axis in graph.axes[name] for leaf in dims.leaves(axis))
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


def against_mask(model: Model, graph: Any, keep: Any) -> float:
    """The difference between the cut function and the masked one."""
    small_apply, small = cj.cut(model.apply, model.params, graph, keep)
    masked = cj.mask(model.params, graph, keep)
    got = run(small_apply, small, *model.inputs)
    return difference(got, run(model.apply, masked, *model.inputs))


def against_narrow(model: Model, graph: Any, seed: int) -> dict[str, Any]:
    """The difference to the same published class configured narrower."""
    narrow = model.narrow
    apply, shapes = narrow.build()
    widths = same_widths(graph, shapes, narrow.groups)
    if isinstance(widths, str):
        return {"oracle": f"none: {widths}"}
    rng = np.random.default_rng(seed + 1)
    keep = {
        name: choose(rng, graph[name].size, count) for name, count in widths.items()
    }
    small_apply, small = cj.cut(model.apply, model.params, graph, keep)
    got = run(small_apply, small, *model.inputs)


    def kept(path: str, axis: int) -> np.ndarray:
        return np.flatnonzero(dims.kept(graph.axes[path][axis], keep))

    with narrow.constants(kept):
        want = run(apply, narrow.adapt(small), *model.inputs)
    return {"narrow": difference(got, want), "oracle": "narrow"}


def difference(got: Any, want: Any) -> float:
    """The largest difference of an output, relative to its largest value."""
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    return max(_difference(np.asarray(a), np.asarray(b)) for a, b in pairs)


def _difference(got: np.ndarray, want: np.ndarray) -> float:
    if got.shape != want.shape:
        raise AssertionError(f"an output of shape {got.shape}, expected {want.shape}")
    if not np.isfinite(want).all():
        raise AssertionError("the oracle is not finite")
    if not want.size:
        return 0.0
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-3))
