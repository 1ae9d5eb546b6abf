"""Groups of the same structure: what may fairly be ranked against each other.

The hidden channels of all blocks of a ResNet play one part, its residual streams
another. Scores of different parts have different scales, whatever the criterion.
"""

from collections import Counter
from typing import Any

from cutjax.dims import Axis, Concat, Fixed, Leaf, Product, leaves
from cutjax.graph import Graph, Group

Signature = tuple[Any, ...]


def classes(graph: Graph) -> tuple[tuple[str, ...], ...]:
    """The free groups, divided into classes of isomorphic structure.

    Two groups are of one class if the places in which they sit match one to one (rank
    of the parameter, axis, how the channels lie in it, and whether the parameter makes
    them, reads them or goes along), and so do the contractions around them (what makes
    and what reads them, from and to free, pinned or no channels). Sizes do not count.

    Args:
        graph: the graph.

    Returns:
        Names of groups per class, both in the order of the graph.

    Reference:
        Fang et al., Isomorphic Pruning for Vision Models (ECCV 2024), section 3.2.

    Example:
        >>> import jax.numpy as jnp, cutjax as cj
        >>> def apply(p, x):
        ...     for block in p["blocks"]:
        ...         x = x + jnp.tanh(x @ block["up"]) @ block["down"]
        ...     return x @ p["head"]
        >>> block = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 3))}
        >>> params = {"blocks": [block, block], "head": jnp.ones((3, 2))}
        >>> classes(cj.trace(apply, params, jnp.ones((1, 3))))
        (('blocks/0/up:1', 'blocks/1/up:1'),)
    """
    around = _around(graph)
    found: dict[Signature, list[str]] = {}
    for group in graph.free:
        key = (_places(group, graph, around[group.name]), _bag(around[group.name]))
        found.setdefault(key, []).append(group.name)
    return tuple(map(tuple, found.values()))


def _around(graph: Graph) -> dict[str, list[tuple[str, str | None, Signature]]]:
    """Per group, the contractions at it: verb, kernel, and a signature."""
    out: dict[str, list[tuple[str, str | None, Signature]]] = {
        g.name: [] for g in graph.groups
    }
    for term in graph.terms:
        rank = None if term.path is None else len(graph.axes[term.path])
        for verb, mine, others in (
            ("makes", term.makes, term.reads),
            ("reads", term.reads, term.makes),
        ):
            other = tuple(sorted({_state(name, graph) for name in others}))
            for name in mine:
                out[name].append((verb, term.path, (verb, rank, other)))
    return out


def _state(name: str, graph: Graph) -> str:
    return "free" if graph[name].pinned is None else "pinned"


def _places(group: Group, graph: Graph, around: Any) -> frozenset[Any]:
    verbs: dict[str | None, set[str]] = {}
    for verb, path, _ in around:
        verbs.setdefault(path, set()).add(verb)
    return frozenset(
        Counter(
            (
                len(graph.axes[member.path]),
                member.axis,
                _shape(member.layout, group.name),
                tuple(sorted(verbs.get(member.path, ()))),
            )
            for member in group.members
        ).items()
    )


def _bag(around: Any) -> frozenset[Any]:
    return frozenset(Counter(signature for *_, signature in around).items())


def _shape(axis: Axis, name: str) -> Any:
    """How a group lies in an axis, without sizes: `("product", "other", "it")`."""
    match axis:
        case Leaf(found):
            return "it" if found == name else "other"
        case Fixed():
            return "fixed"
        case Product(parts):
            return ("product", *(_shape(part, name) for part in parts))
        case Concat(parts):
            # How much else lies beside it is no part of its structure.
            at = [part for part in parts if name in {x.name for x in leaves(part)}]
            return ("concat", *(_shape(part, name) for part in at))
