"""Laws of the graph: groups, members, stability, symmetry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from nets import Net

from .tools import (
    attempt,
    close,
    free,
    graph_of,
    positions,
    run,
    run_full,
)


def check_groups(cj: Any, net: Net) -> None:
    """The free groups are those found on paper; a statistic leaves a note."""
    graph = graph_of(cj, net)
    names = [group.name for group in graph.groups]
    assert len(set(names)) == len(names), "two groups with one name"
    assert set(graph.tasks) == set(net.tasks), f"tasks {graph.tasks}"
    sizes = tuple(sorted(group.size for group in free(graph)))
    assert net.expected is None or sizes == net.expected, (
        f"free groups {sizes}, on paper {net.expected}:\n{graph}"
    )
    noted = any(group.notes for group in free(graph))
    assert noted or net.exact, "a statistic crosses a group and no note says so"
    for group in graph.groups:
        assert set(group.tasks) <= set(net.tasks), f"{group.name}: {group.tasks}"
        assert group.members, f"{group.name} has no member"


def check_members(cj: Any, net: Net) -> None:
    """Cutting a group changes exactly the axes that its members name."""
    graph = graph_of(cj, net)
    for group in free(graph):
        if group.size > 1:
            touched = len(positions(cj, net, group.name))
            listed = len({(str(m.path), m.axis) for m in group.members})
            assert touched == listed, f"{group.name}: {touched} cut, {listed} listed"


def signature(graph: Any) -> Any:
    """What two traces of the same model agree on."""

    def members(group: Any) -> Any:
        return tuple(sorted((str(m.path), m.axis) for m in group.members))

    return sorted((g.name, g.size, g.pinned is None, members(g)) for g in graph.groups)


def reordered(tree: Any) -> Any:
    if type(tree) is dict:
        return {key: reordered(tree[key]) for key in reversed(tree)}
    if type(tree) in (list, tuple):
        return type(tree)(reordered(item) for item in tree)
    return tree


def check_graph_stable(cj: Any, net: Net, how: str) -> None:
    """The same groups under jit, remat, vmap, from shapes, in any order of keys."""
    apply, params, inputs = net.apply, net.params, net.inputs
    if how == "jit":
        apply = jax.jit(apply)
    elif how == "remat":
        apply = jax.checkpoint(apply)
    elif how == "shapes":
        params, inputs = jax.eval_shape(lambda *a: a, params, inputs)
    elif how == "order":
        params = reordered(params)
    elif how == "vmap":
        apply = jax.vmap(apply, in_axes=(None, *(0 for _ in inputs)))
        inputs = tuple(jnp.stack([x, x]) for x in inputs)
    again = attempt(cj.trace, apply, params, *inputs)
    assert signature(again) == signature(graph_of(cj, net)), (
        f"under {how}:\n{again}\nplain:\n{graph_of(cj, net)}"
    )


def check_permutation(cj: Any, net: Net, seed: int) -> None:
    """Permuting the channels of the free groups, in every member, changes nothing.

    Where constants tell the channels of a group apart, permuting it changes something.
    """
    groups = free(graph_of(cj, net))
    permuted = _permuted(cj, net, seed, [g for g in groups if not g.ordered])
    close(run(net.apply, permuted, *net.inputs), run_full(net), 2e-5)
    for group in groups:
        if group.ordered:
            permuted = _permuted(cj, net, seed, [group])
            found = run(net.apply, permuted, *net.inputs)
            assert not _alike(found, run_full(net)), f"{group.name} has no order"


def _alike(found: Any, want: Any) -> bool:
    try:
        close(found, want, 2e-5)
    except AssertionError:
        return False
    return True


def _permuted(cj: Any, net: Net, seed: int, groups: Sequence[Any]) -> Any:
    rng = np.random.default_rng(seed)
    leaves, treedef = jax.tree.flatten(net.params)
    for group in groups:
        order = np.roll(rng.permutation(group.size), 1)
        for (number, axis), where in positions(cj, net, group.name).items():
            source = np.arange(leaves[number].shape[axis])
            source[where.ravel()] = where[order].ravel()
            leaves[number] = jnp.take(leaves[number], source, axis=axis)
    return jax.tree.unflatten(treedef, leaves)
