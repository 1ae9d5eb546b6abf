"""Where the channels of several networks go when these become one.

A sharing says, per group and network, to which shared channel each channel goes: a
position of the architecture, 0 ... n - 1, where several may meet; or that it stays its
network's own (OWN), or goes (DROPPED). Groups that are not named are shared as they
stand.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int

from cutjax.errors import KeepError, suggest
from cutjax.given import check_by_name, said, several
from cutjax.graph import Graph
from cutjax.merge.permute import Permutation, check_permutation, inverse

OWN, DROPPED = -1, -2

Sharing: TypeAlias = Mapping[str, Mapping[str, Int[np.ndarray, "_"] | list[int]]]
"""`sharing[group][network]`: int[n], the shared channel of each channel, or OWN, or
DROPPED; in an array, or in a list as read from JSON."""


def check(
    graph: Graph, names: Sequence[str], sharing: Mapping[str, Mapping[str, Any]]
) -> None:
    """Check that a sharing fits.

    Args:
        graph: of all networks.
        names: the networks.
        sharing: what should fit them.

    Raises:
        KeepError: no mapping by group and network, an unknown group or network, a
            network that is missing, a wrong length or dtype, a position out of range, a
            pinned group that is not shared as it stands, or channels that move though
            constants tell them apart.

    Example:
        >>> import jax.numpy as jnp, numpy as np, cutjax as cj
        >>> apply = lambda w, x: x @ w["a"] @ w["b"]
        >>> w = {"a": jnp.ones((1, 2)), "b": jnp.ones((2, 1))}
        >>> graph = cj.trace(apply, w, jnp.ones((1, 1)))
        >>> check(graph, ["one"], {"a:1": {"one": np.array([0, OWN])}})
    """
    if not isinstance(sharing, Mapping):
        raise KeepError(
            f"sharing is {said(sharing)}; pass {{group: {{network: slots}}}}"
        )
    for name, found in sharing.items():
        group = graph[name]
        if not isinstance(found, Mapping):
            raise KeepError(
                f"sharing[{name!r}] is {said(found)}; pass {{network: slots}}"
            )
        for network in found:
            check_network(network, names)
        for network in names:
            if network not in found:
                raise KeepError(f"sharing[{name!r}] says nothing of {network!r}")
            slots = np.asarray(found[network])
            what = f"sharing[{name!r}][{network!r}]"
            if slots.shape != (group.size,) or slots.dtype.kind != "i":
                raise KeepError(
                    f"{what} is {slots.dtype}{list(slots.shape)}, not int[{group.size}]"
                )
            wrong = (slots < DROPPED) | (slots >= group.size)
            if wrong.any():
                raise KeepError(
                    f"{what} holds {slots[wrong][0]}, which is neither a position 0 "
                    f"... {group.size - 1} nor OWN ({OWN}) nor DROPPED ({DROPPED})"
                )
            moved = slots != np.arange(group.size)
            if group.pinned is not None and moved.any():
                raise KeepError(
                    f"{name!r} must be shared as it stands; it is pinned: "
                    f"{group.pinned}"
                )
            if group.ordered is not None and (moved & (slots >= 0)).any():
                raise KeepError(
                    f"{what} moves channels that a constant tells apart at "
                    f"{group.ordered}; what is shared of them must stay where it is"
                )


def from_permutations(
    graph: Graph, permutations: Mapping[str, Permutation]
) -> dict[str, dict[str, Int[np.ndarray, "_"]]]:
    """All channels shared, those that correspond in one.

    Args:
        graph: of all networks.
        permutations: by network, as `align_all` finds them: its channel
            `permutation[group][i]` goes to position `i`. What is not named stays where
            it is; the reference may have an empty one.

    Returns:
        The sharing of all free groups.

    Raises:
        KeepError: an unknown group, a pinned one that moves, or what is no permutation.
        MismatchError: no network, or permutations that are not by network.

    Example:
        >>> import jax.numpy as jnp, numpy as np, cutjax as cj
        >>> apply = lambda w, x: x @ w["a"] @ w["b"]
        >>> w = {"a": jnp.ones((1, 3)), "b": jnp.ones((3, 1))}
        >>> graph = cj.trace(apply, w, jnp.ones((1, 1)))
        >>> orders = {"one": {}, "two": {"a:1": np.array([1, 2, 0])}}
        >>> found = from_permutations(graph, orders)["a:1"]
        >>> {name: slots.tolist() for name, slots in found.items()}
        {'one': [0, 1, 2], 'two': [2, 0, 1]}
    """
    wanted = "{network: {group: ...}}, as `align_all` returns them"
    check_by_name(permutations, "permutations", wanted, Mapping)
    moved = {n: inverse(check_permutation(graph, p)) for n, p in permutations.items()}
    return {
        g.name: {n: m.get(g.name, np.arange(g.size)) for n, m in moved.items()}
        for g in graph.free
    }


def until(
    graph: Graph,
    names: Sequence[str],
    sharing: Sharing,
    shared: Collection[str] | str,
) -> dict[str, dict[str, Int[np.ndarray, "_"]]]:
    """Share some groups only; all others stay with their networks.

    What is shared reads only what is shared: share what leads to a group too, and with
    a residual stream the blocks that enter it (merging says so).

    Args:
        graph: of all networks.
        names: the networks.
        sharing: of their channels.
        shared: the groups that stay as `sharing` has them; pinned ones always do.

    Returns:
        A sharing where all channels of all other free groups are OWN.

    Raises:
        KeepError: an unknown group.

    Example:
        >>> import jax.numpy as jnp, cutjax as cj
        >>> apply = lambda w, x: x @ w["a"] @ w["b"]
        >>> w = {"a": jnp.ones((1, 3)), "b": jnp.ones((3, 1))}
        >>> graph = cj.trace(apply, w, jnp.ones((1, 1)))
        >>> until(graph, ["one"], {}, [])["a:1"]["one"].tolist()
        [-1, -1, -1]
    """
    stay = {graph[name].name for name in several(shared)}
    out = {
        name: {n: np.asarray(slots) for n, slots in found.items()}
        for name, found in sharing.items()
        if name in stay
    }
    for group in graph.free:
        if group.name not in stay:
            out[group.name] = {n: np.full(group.size, OWN) for n in names}
    return out


def shared_widths(sharing: Sharing) -> dict[str, int]:
    """How many shared channels each group has.

    Args:
        sharing: of the channels; only groups that it names are counted.

    Returns:
        By group, the positions that at least one channel goes to.

    Example:
        >>> shared_widths({"g": {"one": np.array([0, 0, 2]), "two": np.array([2, -1])}})
        {'g': 2}
    """
    out = {}
    for name, found in sharing.items():
        slots = np.concatenate(list(found.values()))
        out[name] = int(np.unique(slots[slots >= 0]).size)
    return out


def own_widths(sharing: Sharing) -> dict[str, dict[str, int]]:
    """How many channels of each group each network keeps for itself.

    Args:
        sharing: of the channels; only groups that it names are counted.

    Returns:
        By group and network.

    Example:
        >>> own_widths({"g": {"one": np.array([0, -1, -1]), "two": np.array([-2, 1])}})
        {'g': {'one': 2, 'two': 0}}
    """
    return {
        name: {n: int((np.asarray(slots) == OWN).sum()) for n, slots in found.items()}
        for name, found in sharing.items()
    }


def check_network(name: str, names: Sequence[str]) -> None:
    """Check that a network is known.

    Args:
        name: the network.
        names: those there are.

    Raises:
        KeepError: it is not.
    """
    if name not in names:
        raise KeepError(f"no network {name!r}; {suggest(name, names)}")
