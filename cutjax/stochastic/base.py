"""Gates that are trained: what they have in common, and what they are charged for."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from cutjax.allocate.meter import channel_savings
from cutjax.cost import cost_of
from cutjax.errors import KeepError, suggest
from cutjax.gate import gate
from cutjax.graph import Graph

State = Mapping[str, Mapping[str, Float[Array, "_"]]]
"""Learned numbers per group: a pytree to differentiate and to give to an optimiser."""

PerChannel = dict[str, Float[Array, "_"]]


class Gates(NamedTuple):
    """A kind of trained gate, as five pure functions of its state.

    `init(key, graph) -> state`: for every free group, open.
    `sample(key, state) -> {group: f32[n]}`: gates for one step of training.
    `mean(state) -> {group: f32[n]}`: gates for use, without chance.
    `penalty(state) -> {group: f32[n]}`: what each channel is charged, differentiable.
    `keep(state) -> {group: bool[n]}`: what stays, on the host, one channel at least.

    The gates go to `cj.gate(apply, graph)`, where reading happens; what is trained is
    `loss(gated(sample(key, state), params, x)) + sum(penalty(state))`.
    """

    init: Callable[[Any, Graph], dict[str, dict[str, Any]]]
    sample: Callable[[Any, State], PerChannel]
    mean: Callable[[State], PerChannel]
    penalty: Callable[[State], PerChannel]
    keep: Callable[[State], dict[str, np.ndarray]]


def per_task(
    graph: Graph, penalties: Mapping[str, Float[Array, "_"]]
) -> dict[str, Float[Array, ""]]:
    """What the groups that a task reaches are charged, summed; per task.

    A group of the trunk counts for all its tasks, so that each task may weigh what it
    pays: `sum(weight[t] * paid[t] for t in paid)`.

    Args:
        graph: the graph.
        penalties: per group and channel.

    Returns:
        Per task of the graph, a scalar.

    Raises:
        KeepError: an unknown group.
    """
    paid = {task: jnp.zeros(()) for task in graph.tasks}
    for name, values in penalties.items():
        for task in graph[name].tasks:
            paid[task] = paid[task] + values.sum()
    return paid


def channel_costs(
    graph: Graph, resource: str = "params", tasks: Any = None
) -> dict[str, float]:
    """What one channel of each group saves of the whole model, as a share.

    Args:
        graph: the graph.
        resource: a field of `Cost`: `params`, `flops`, `bytes`.
        tasks: of the model for these tasks; all, if not given.

    Returns:
        Per free group, at full widths; a channel of a narrower model saves less.

    Raises:
        KeepError: an unknown resource.
    """
    chosen = graph.check_tasks(tasks)
    full = cost_of(graph, {}, chosen)
    if resource not in full._fields:
        raise KeepError(f"no resource {resource!r}; {suggest(resource, full._fields)}")
    whole = getattr(full, resource)
    key = "params[trunk]" if resource == "trunk_params" else resource
    saved = channel_savings(graph, chosen, key)
    return {name: less / max(whole, 1) for name, less in saved.items()}


def weigh(
    penalties: Mapping[str, Float[Array, "_"]], costs: Mapping[str, float]
) -> PerChannel:
    """Penalties times the costs of their groups.

    Args:
        penalties: per group and channel.
        costs: per group, such as `channel_costs` gives.

    Returns:
        Per group and channel.

    Raises:
        KeepError: a group without a cost.
    """
    missing = [name for name in penalties if name not in costs]
    if missing:
        raise KeepError(
            f"no cost of group {missing[0]!r}; {suggest(missing[0], costs)}"
        )
    return {name: values * costs[name] for name, values in penalties.items()}


def gated_tree(
    apply: Callable[..., Any], graph: Graph, gates: Callable[[Any], PerChannel]
) -> Callable[..., Any]:
    """One function of gates and parameters, that can be traced and cut like any other.

    Args:
        apply: the function.
        graph: its graph.
        gates: from the state to gates: `kind.mean`, or `lambda s: kind.sample(key, s)`;
            the identity, if the tree holds values of gates. A state that is sorted
            (`straight_topk`) stays whole, its values can be cut.

    Returns:
        `f({"gates": state, "params": params}, *inputs)`. Its groups are those of
        `apply`, `params/` before their names (see `renamed`); the state is cut along.
    """
    gated = gate(apply, graph)

    def fn(tree: Mapping[str, Any], *inputs: Any) -> Any:
        return gated(gates(tree["gates"]), tree["params"], *inputs)

    return fn


def renamed(keep: Mapping[str, Any]) -> dict[str, Any]:
    """A keep of `apply` as one of its `gated_tree`."""
    return {f"params/{name}": mask for name, mask in keep.items()}


def at_least_one(
    on: Mapping[str, Any], order: Mapping[str, Any]
) -> dict[str, Bool[np.ndarray, "_"]]:
    """Masks on the host; where one is empty, its best channel stays."""
    out = {}
    for name, mask in on.items():
        out[name] = np.array(mask, bool)
        if not out[name].any():
            out[name][int(np.argmax(np.asarray(order[name])))] = True
    return out


def each(state: State, compute: Callable[..., Any]) -> dict[str, Any]:
    """`compute(**numbers)` for every group."""
    return {name: compute(**numbers) for name, numbers in state.items()}
