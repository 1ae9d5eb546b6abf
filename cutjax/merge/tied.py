"""Networks that look at inputs of their own, over kernels that are stored once."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from cutjax.errors import KeepError, suggest
from cutjax.given import check_by_name
from cutjax.inputs import inputs_of
from cutjax.merge.merged import (
    Merged,
    answers,
    mirrors,
    packed,
    restored,
    unpacked,
)
from cutjax.merge.network import Network, Networks, bare, check_alike, evaluating
from cutjax.merge.permute import Permutation, permute
from cutjax.merge.sharing import OWN, Sharing, check
from cutjax.merge.tying import Batches, tie


def tied(
    networks: Networks,
    sharing: Sharing,
    batches: Batches,
    *,
    lockstep: bool = True,
    damping: float | None = None,
    rows: int = 32,
    progress: bool = True,
) -> Merged:
    """Networks of one trunk and different inputs, with one kernel where they share.

    Each network runs for itself, on inputs of any shape: memory is shared, work is not.
    One for all is every kernel that reads and makes shared channels, fitted in closed
    form, reader after reader; stems, heads, biases, scales and statistics stay each
    network's own. So do kernels that are read in several places, or in loops. No
    labels. With BatchNorm, `recalibrate` the `tied_train_apply` afterwards.

    Args:
        networks: by name, of one architecture; what is pinned may differ.
        sharing: see `average`; a group is shared one to one or not at all, as
            `from_permutations` and `until` make it.
        batches: by network, `(x, ...)` of its calibration data, or bare inputs, of
            equal sizes (others are left out); all networks count alike,
            however much data there is of each.
        lockstep: fit what the tied networks themselves read, refitted upstream, and
            each network's own kernels as well; else what the networks read when they
            were apart (MTZ).
        damping: lambda, as a share of the mean square of the features; None chooses it
            per reader, see `least_squares`.
        rows: per feature, rows that suffice; of more, evenly spread ones are taken.
        progress: show a progress bar.

    Returns:
        `apply(params, {network: inputs}) -> {task: output}` of the networks that are
        given, and its parameters; inputs are one array, or a tuple of several.

    Raises:
        DataError: a network without data, NaN in what a reader reads or makes, or a
            damping or rows that are not above 0.
        KeepError: the sharing does not fit, or shares a group in part.
        MismatchError: the networks are not of one architecture.

    Example:
        >>> import jax, jax.numpy as jnp, cutjax as cj
        >>> apply = lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"] @ w["c"]
        >>> w = {"b": jnp.eye(3), "c": jnp.ones((3, 1))}
        >>> nets, data = {}, {"sound": [jnp.eye(2)], "light": [jnp.eye(5)]}
        >>> for name, (x,) in data.items():
        ...     p = {**w, "a": jnp.ones((x.shape[1], 3))}
        ...     nets[name] = cj.merge.Network(apply, p, cj.trace(apply, p, x))
        >>> both = cj.merge.tied(nets, {}, data, progress=False)
        >>> y = both.apply(both.params, {"light": jnp.ones((1, 5))})
        >>> {task: v.round(2).tolist() for task, v in y.items()}
        {'light': [[15.0]]}

    Reference:
        MIMONet, 2023; He, Zhou & Thiele, Multi-Task Zipping, NeurIPS 2018, eq. 8.
    """
    check_alike(networks)
    graph, names = next(iter(networks.values())).graph, tuple(networks)
    check(graph, names, sharing)
    orders = {name: order_of(sharing, name) for name in names}
    moved = {
        name: net._replace(params=permute(net.params, net.graph, orders[name]))
        for name, net in networks.items()
    }
    first = {group: np.asarray(found[names[0]]) for group, found in sharing.items()}
    apart = {group for group, slots in first.items() if (slots == OWN).all()}
    shared = {group.name for group in graph.free} - apart
    with evaluating(networks):
        parts = tie(moved, shared, batches, lockstep, damping, rows, progress)
    return Merged(_apply(networks), packed(parts))


def order_of(sharing: Sharing, network: str) -> Permutation:
    """Which channel of a network each shared one is.

    Raises:
        KeepError: a group is shared in part, or several channels go into one.
    """
    orders = {}
    for group, found in sharing.items():
        slots = np.asarray(found[network])
        if all((np.asarray(other) == OWN).all() for other in found.values()):
            continue
        if not np.array_equal(np.sort(slots), np.arange(slots.size)):
            raise KeepError(
                f"sharing[{group!r}][{network!r}] is not one to one; networks of "
                "different inputs share a group whole and one to one, or not at all: "
                "see `from_permutations` and `until`"
            )
        orders[group] = np.argsort(slots)
    return orders


def tied_train_apply(
    networks: Networks,
) -> Callable[[Any, Mapping[str, Any]], tuple[dict[str, Any], dict[str, Any]]]:
    """The function of `tied` in train mode, for `recalibrate` and for training.

    Args:
        networks: by name; here `apply` is `train_apply(params, *inputs) -> (outputs,
            updates)`, where updates mirror parameters, such as new running statistics.

    Returns:
        `train_apply(params, {network: inputs}) -> ({task: output}, updates)`.
    """
    networks = bare(networks)

    def apply(
        params: Any, inputs: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        parts, found, changed = unpacked(params, networks), {}, set()
        own = {name: {**leaves} for name, leaves in parts.own.items()}
        for name, given in _asked(networks, inputs).items():
            net = networks[name]
            out = net.apply(tree_of(net, {**parts.shared, **own[name]}), *given)
            flat = jax.tree.leaves(out)
            found |= answers(name, restored(net, given, flat)[0])
            for i, path in mirrors(net, given).items():
                own[name][path] = flat[i]
                changed.add(path.partition("/")[0])
        tree = packed(parts._replace(own=own))
        return found, {name: tree[name] for name in changed}

    return apply


def _apply(
    networks: Networks,
) -> Callable[[Any, Mapping[str, Any]], dict[str, Any]]:
    networks = bare(networks)

    def apply(params: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        parts, found = unpacked(params, networks), {}
        for name, given in _asked(networks, inputs).items():
            net = networks[name]
            tree = tree_of(net, {**parts.shared, **parts.own[name]})
            found |= answers(name, net.apply(tree, *given))
        return found

    return apply


def _asked(networks: Networks, inputs: Mapping[str, Any]) -> dict[str, tuple]:
    check_by_name(inputs, "inputs", "{network: input, ...}")
    for name in inputs:
        if name not in networks:
            raise KeepError(f"no network {name!r}; {suggest(name, networks)}")
    return {name: inputs_of((given,)) for name, given in inputs.items()}


def tree_of(net: Network, leaves: Mapping[str, Any]) -> Any:
    """A network's own parameters, from leaves by path."""
    return jax.tree.unflatten(net.graph.treedef, [leaves[p] for p in net.graph.shapes])
