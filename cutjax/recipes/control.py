"""The control for every method: these widths, new weights."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from cutjax.dims import Keep, kept, leaves
from cutjax.graph import Graph
from cutjax.mirror import named_leaves
from cutjax.shrink import cut


def reinitialise(
    init: Callable[..., Any],
    apply: Callable[..., Any],
    graph: Graph,
    keep: Keep,
    *args: Any,
    tasks: Sequence[str] | str | None = None,
) -> tuple[Callable[..., Any], Any]:
    """A network of the widths of a cut with fresh weights, to be trained as a control.

    Full-size weights are drawn and cut; kernels are scaled by the root of full over
    kept fan-in, so that their variance is what an initialiser that scales with fan-in
    would draw for the narrow kernel.

    Args:
        init: `init(*args)`, the full network's initialiser.
        apply: the full network's function.
        graph: its graph.
        keep: the widths; which channels does not matter.
        *args: for `init`: a key, an input.
        tasks: as in `cut`.

    Returns:
        `(small_apply, small_params)`.

    Reference:
        Garg, Zhang & Guan, 2023: widths that were found, trained from scratch.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, cutjax as cj
        >>> draw = jax.random.normal
        >>> init = lambda key: {"a": draw(key, (2, 3)), "b": jnp.ones((3, 1))}
        >>> apply = lambda w, x: x @ w["a"] @ w["b"]
        >>> graph = cj.trace(apply, init(jax.random.key(0)), jnp.ones((1, 2)))
        >>> keep = {"a:1": np.array([True, False, False])}
        >>> fn, w = reinitialise(init, apply, graph, keep, jax.random.key(1))
        >>> round(float(w["b"][0, 0]) ** 2, 3)
        3.0
    """
    fresh = init(*args)
    small_apply, small = cut(apply, fresh, graph, keep, tasks)
    gains = _gains(graph, keep)
    values = [
        leaf * gains[name] if name in gains else leaf
        for name, leaf in named_leaves(small).items()
    ]
    return small_apply, jax.tree.unflatten(jax.tree.structure(small), values)


def _gains(graph: Graph, keep: Keep) -> dict[str, float]:
    """Per kernel, the root of full over kept fan-in."""
    out: dict[str, float] = {}
    for term in graph.terms:
        if term.path is None or term.path in out:
            continue
        read = set(term.reads)
        share = 1.0
        for axis in graph.axes[term.path]:
            if read & {leaf.name for leaf in leaves(axis)}:
                share *= float(np.mean(kept(axis, keep)))
        if 0 < share < 1:
            out[term.path] = share**-0.5
    return out
