"""The networks that are merged: one architecture, a function and parameters each."""

from collections.abc import Callable, Container, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from cutjax.dims import Axis, Concat, Leaf, Product
from cutjax.errors import MismatchError
from cutjax.given import as_traced, check_by_name
from cutjax.graph import Graph
from cutjax.mirror import named_leaves
from cutjax.shrink import check_params


class Network(NamedTuple):
    """A function, its parameters and its graph.

    Networks of one architecture may differ in what is pinned, such as how many classes
    a head tells apart; each then has a function and a graph of its own.
    """

    apply: Callable[..., Any]
    params: Any
    graph: Graph

    @property
    def leaves(self) -> dict[str, Any]:
        """Parameters by path."""
        return named_leaves(self.params)


Networks = Mapping[str, Network]


def bare(networks: Networks) -> Networks:
    """Without parameters: a function should not hold those of the originals."""
    return {name: net._replace(params=None) for name, net in networks.items()}


def check_alike(networks: Networks) -> None:
    """Check that networks have one architecture.

    Args:
        networks: by name.

    Raises:
        MismatchError: names the first difference; or there is no network, or
            parameters of two names would have one place in the merged tree.
    """
    wanted = "{name: merge.Network(apply, params, graph), ...}"
    check_by_name(networks, "networks", wanted, Network)
    (first, net), *others = networks.items()
    check_params(net.params, net.graph)
    check_places(net.graph)
    for name, other in others:
        check_params(other.params, other.graph)
        try:
            _check_same((first, net.graph), (name, other.graph))
        except MismatchError:
            check_answers({first: net, name: other})
            raise


def _check_same(one: tuple[str, Graph], other: tuple[str, Graph]) -> None:
    for of, what in ((_sizes, "group"), (_axes, "parameter")):
        _same((one[0], of(one[1])), (other[0], of(other[1])), what)


def check_answers(networks: Networks) -> None:
    """Check that networks answer equally many tasks.

    Args:
        networks: by name.

    Raises:
        MismatchError: names the first that does not, and what each answers.
    """
    (first, net), *others = networks.items()
    one = net.graph.tasks
    for name, other in others:
        tasks = other.graph.tasks
        if len(tasks) != len(one):
            raise MismatchError(
                f"networks {first!r} and {name!r} do not answer alike: {name!r} "
                f"answers {', '.join(tasks)}; {first!r} answers {', '.join(one)}\n"
                f"  try: as many of each, as in `cj.select(apply, {tasks[0]!r})`, with "
                "only the parameters that these need"
            )


def evaluating(networks: Networks) -> AbstractContextManager[None]:
    """While networks are evaluated; see `given.as_traced`."""
    return as_traced(*((net.leaves, net.graph.shapes) for net in networks.values()))


def place(path: str) -> tuple[str, str]:
    """Collection and key of a path; parameters without a collection are `params`."""
    collection, _, key = path.partition("/")
    return (collection, key) if key else ("params", path)


def check_places(graph: Graph) -> None:
    """Check that no two parameters have one place in the merged tree."""
    found: dict[tuple[str, str], str] = {}
    for path in graph.shapes:
        other = found.setdefault(place(path), path)
        if other != path:
            raise MismatchError(
                f"parameters {other!r} and {path!r} would have one place in the merged "
                "tree, where what is in no collection stands in `params`; give one of "
                "them another name"
            )


def _sizes(graph: Graph) -> list[tuple[str, Any]]:
    return [(group.name, group.size) for group in graph.free]


def _axes(graph: Graph) -> list[tuple[str, Any]]:
    free = {group.name for group in graph.free}
    found = graph.axes.items()
    return [(p, ", ".join(_plain(a, free) for a in axes)) for p, axes in found]


def _plain(axis: Axis, free: Container[str]) -> str:
    """An axis without what is pinned in it: sizes may differ there."""
    match axis:
        case Leaf(name, size) if name in free:
            return f"{size} of {name}"
        case Product(parts) | Concat(parts):
            inner = [_plain(part, free) for part in parts]
            return f"({(' x ' if isinstance(axis, Product) else ' + ').join(inner)})"
        case _:
            return "pinned"


def _same(a: tuple[str, list], b: tuple[str, list], what: str) -> None:
    """Check that two lists of (name, value) are equal; the first difference is told."""
    for one, other in zip(a[1], b[1], strict=False):
        if one != other:
            raise MismatchError(
                f"networks {a[0]!r} and {b[0]!r} are of different architectures; the "
                f"first {what} that differs: {_said(one)} against {_said(other)}"
            )
    if len(a[1]) != len(b[1]):
        more, less = (a, b) if len(a[1]) > len(b[1]) else (b, a)
        raise MismatchError(
            f"networks {a[0]!r} and {b[0]!r} are of different architectures: the "
            f"{what} {more[1][len(less[1])][0]!r} is only in {more[0]!r}"
        )


def _said(item: tuple[str, Any]) -> str:
    return f"{item[0]!r} ({item[1]})"
