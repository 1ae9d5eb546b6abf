"""Why axes are coupled: the chain of equations between two places of a group.

Every equation that tied two variables left a link. The links whose both ends hold a
group's channels connect all its places: walking them from the place that names the
group, each other place hangs on the nearest one before it, by the lines in between.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from cutjax.unify import Link, Var, Where, find, leaf_vars


class Tie(NamedTuple):
    """What a place hangs on: another place, `path:axis`, and the equations between."""

    to: str
    by: tuple[Where, ...]


Edges = dict[Var, list[tuple[Var, Where | None]]]


def ties_of(
    links: Iterable[Link],
    names: Mapping[Var, str],
    places: Mapping[str, Mapping[str, Var]],
) -> dict[str, dict[str, Tie]]:
    """How the places of each group hang together.

    Args:
        links: what the solver tied.
        names: the groups by their variables.
        places: group -> place (`path:axis`) -> the variable of that axis; the first
            place is the root.

    Returns:
        Group -> place -> its tie; the root has none, nor has a place without a proof.
    """
    edges = _edges(links, names)
    return {name: _walk(edges.get(name, {}), found) for name, found in places.items()}


def _edges(links: Iterable[Link], names: Mapping[Var, str]) -> dict[str, Edges]:
    """Per group, the links both of whose ends hold it."""
    below: dict[Var, set[str]] = {}

    def held(var: Var) -> set[str]:
        root = find(var)
        if root not in below:
            below[root] = {names[v] for v in leaf_vars(root) if v in names}
        return below[root]

    out: dict[str, Edges] = {}
    for a, b, where in links:
        for name in held(b) if held(b) is held(a) else held(a) & held(b):
            edges = out.setdefault(name, {})
            edges.setdefault(a, []).append((b, where))
            edges.setdefault(b, []).append((a, where))
    return out


def _walk(edges: Edges, places: Mapping[str, Var]) -> dict[str, Tie]:
    """Breadth first from the root: the shortest chain to each place."""
    place_of = {var: place for place, var in reversed([*places.items()])}
    root = next(iter(places.values()))
    nearest: dict[Var, Tie] = {root: Tie(place_of[root], ())}
    found: dict[str, Tie] = {}
    queue = deque([root])
    while queue:
        var = queue.popleft()
        for other, where in edges.get(var, ()):
            if other in nearest:
                continue
            to, by = nearest[var]
            if where is not None and where is not (by[-1] if by else None):
                by = (*by, where)
            tie = Tie(to, by)
            place = place_of.get(other)
            if place is not None:
                found[place] = tie
            nearest[other] = tie if place is None else Tie(place, ())
            queue.append(other)
    return found


def said(tie: Tie, line: Callable[[Where], str]) -> str:
    """A tie in words: ``with conv/kernel:3 by `add` at net.py:12 (block)``."""
    steps = dict.fromkeys(f"`{w.eqn.primitive}` at {line(w)}" for w in tie.by)
    return f"with {tie.to}" + (f" by {', '.join(steps)}" if steps else "")
