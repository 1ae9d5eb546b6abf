"""What the laws share: running, random keeps, where channels sit, comparing."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from nets import Net, path_of


def attempt(fn: Any, *args: Any, **kw: Any) -> Any:
    """Calls the function under test; what it raises is a broken law, not a crash."""
    try:
        return fn(*args, **kw)
    except AssertionError:
        raise
    except Exception as error:
        name = getattr(fn, "__name__", fn)
        raise AssertionError(
            f"{name} raised {type(error).__name__}: {error}"
        ) from error


def run(fn: Any, *args: Any) -> Any:
    return attempt(jax.jit(fn), *args)


@functools.cache
def run_full(net: Net) -> Any:
    return run(net.apply, net.params, *net.inputs)


@functools.cache
def _graph(trace: Any, net: Net) -> Any:
    return attempt(trace, net.apply, net.params, *net.inputs)


def graph_of(cj: Any, net: Net) -> Any:
    return _graph(cj.trace, net)


def free(graph: Any) -> list[Any]:
    return [group for group in graph.groups if group.pinned is None]


def random_keep(graph: Any, seed: int, least: int = 1, exact: bool = True) -> Any:
    """Cuts some of nearly every free group; if not `exact`, of none with a note."""
    rng = np.random.default_rng(seed)
    keep = {}
    for group in free(graph):
        if (group.notes and not exact) or group.size <= least or rng.random() < 0.1:
            continue
        kept = np.zeros(group.size, bool)
        count = rng.integers(least, group.size)
        kept[rng.permutation(group.size)[:count]] = True
        keep[group.name] = kept
    return keep


def cut_tree(cj: Any, tree: Any, graph: Any, keep: Any) -> Any:
    """`cut_params`; outside of a trace it takes on the host and compiles nothing."""
    return attempt(cj.cut_params, tree, graph, keep)


def index_tree(net: Net) -> Any:
    """The parameters with every entry replaced by its flat position."""
    return jax.tree.map(lambda x: np.arange(x.size).reshape(x.shape), net.params)


@dataclass(frozen=True, eq=False)
class Case:
    """One keep of one net, and what several laws ask about it, computed once."""

    cj: Any
    net: Net
    graph: Any
    keep: Any

    @functools.cached_property
    def params(self) -> Any:
        return cut_tree(self.cj, self.net.params, self.graph, self.keep)

    @functools.cached_property
    def masked(self) -> Any:
        return run(lambda p: self.cj.mask(p, self.graph, self.keep), self.net.params)

    @functools.cached_property
    def small(self) -> Any:
        return attempt(self.cj.shrink, self.net.apply, self.graph, self.keep)

    @functools.cached_property
    def small_out(self) -> Any:
        return run(self.small, self.params, *self.net.inputs)

    @functools.cached_property
    def masked_out(self) -> Any:
        return run(self.net.apply, self.masked, *self.net.inputs)

    @functools.cached_property
    def index(self) -> Any:
        """Per leaf, the flat positions that the cut keeps."""
        cut = cut_tree(self.cj, index_tree(self.net), self.graph, self.keep)
        return jax.tree.map(np.asarray, cut)

    def kept(self, path: str, axis: int) -> np.ndarray:
        """What `Net.narrow` reads its widths from."""
        shape = dict(leaves_of(self.net.params))[path].shape
        return np.unique(
            np.unravel_index(dict(leaves_of(self.index))[path], shape)[axis]
        )


_CASES: dict[Any, Case] = {}


def case_of(cj: Any, net: Net, seed: int, least: int = 1, exact: bool = True) -> Case:
    """The case of a random keep; shared by the laws that judge the same functions."""
    functions = (cj.trace, cj.mask, cj.cut_params, cj.shrink)
    key = (functions, net, seed, least, exact or net.exact)
    if key not in _CASES:
        graph = graph_of(cj, net)
        keep = random_keep(graph, seed, least, exact)
        _CASES[key] = Case(cj, net, graph, keep)
    return _CASES[key]


def leaves_of(tree: Any) -> list[tuple[str, Any]]:
    return [(path_of(p), x) for p, x in jax.tree_util.tree_leaves_with_path(tree)]


@functools.cache
def _positions(cut_params: Any, trace: Any, net: Net, name: str) -> Any:
    """Per (leaf number, axis) of a group: where its channels sit, [channel, copies].

    Cutting to one channel leaves that channel and what is not of the group; the latter
    is what all such cuts have in common.
    """
    graph = _graph(trace, net)
    index = index_tree(net)
    shapes = [x.shape for x in jax.tree.leaves(net.params)]
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    for channel in np.eye(graph[name].size, dtype=bool):
        cut = attempt(cut_params, index, graph, {name: channel})
        for number, (leaf, shape) in enumerate(
            zip(jax.tree.leaves(cut), shapes, strict=True)
        ):
            where = np.unravel_index(np.asarray(leaf), shape)
            for axis in range(len(shape)):
                if leaf.shape[axis] != shape[axis]:
                    there = found.setdefault((number, axis), [])
                    there.append(np.unique(where[axis]))
    return {key: _own(rows) for key, rows in found.items()}


def _own(rows: list[np.ndarray]) -> np.ndarray:
    shared = functools.reduce(np.intersect1d, rows)
    return np.stack([np.setdiff1d(row, shared) for row in rows])


def positions(cj: Any, net: Net, name: str) -> Any:
    return _positions(cj.cut_params, cj.trace, net, name)


def close(got: Any, want: Any, rel: float = 1e-5, rounded: Any = None) -> None:
    """Same structure and shapes; differences below `rel` of the largest value.

    `rounded`: what is wanted, of parameters rounded once more. Where that changes it
    by much (a gradient that cancels) ten times as much is let by.
    """
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert len(got) == len(want), f"{len(got)} arrays, expected {len(want)}"
    again = want if rounded is None else jax.tree.leaves(rounded)
    for a, b, c in zip(got, want, again, strict=True):
        a, b, noise = np.asarray(a), np.asarray(b), np.abs(b - c)
        assert a.shape == b.shape, f"shape {a.shape}, expected {b.shape}"
        assert np.isfinite(b).all(), "the oracle is not finite"
        if a.size:
            whole = max(np.abs(b).max(), 1e-3)
            worst = np.abs(a - b).max() / whole
            allowed = rel + 10 * noise.max() / whole
            assert worst <= allowed, f"differs by {worst:.1e} of the largest value"


def rounded(tree: Any) -> Any:
    """Every value off by about its last bit."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x * rng.uniform(1 - 1e-7, 1 + 1e-7, x.shape).astype(x.dtype), tree
    )


def answers(out: Any) -> dict[str, Any]:
    return out if isinstance(out, dict) else {"output": out}


def uneven(out: Any) -> jax.Array:
    """A fixed, curved scalar that weighs every output differently."""
    total = jnp.zeros(())
    for y in jax.tree.leaves(out):
        weights = jnp.sin(1.0 + jnp.arange(y.size, dtype=y.dtype))
        total = total + (jnp.tanh(y.ravel() / 2) * weights).sum()
    return total


def count(params: Any) -> int:
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
