"""Gradient-activation saliency: what the loss of a task owes to each channel.

One forward pass and one activation-only backward pass per task give, for every example,
dL/dgate of every channel: activation times gradient, summed over positions and readers.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cutjax.gate import gate, ones
from cutjax.graph import Graph
from cutjax.saliency.stream import Batch, Loss, alone, check_finite, padded, task_losses

Scores = dict[str, Float[np.ndarray, "_"]]


class GradientState(NamedTuple):
    """Sums over examples, per group [tasks, n]: |a g| and (a g)^2; and their number."""

    absolute: dict[str, Float[Array, "t _"]]
    square: dict[str, Float[Array, "t _"]]
    examples: Int[Array, ""]


def per_example(
    apply: Callable[..., Any], graph: Graph, losses: Mapping[str, Loss]
) -> Callable[..., dict[str, Float[Array, "b t _"]]]:
    """The gate gradients of every example and task.

    Args:
        apply: the full function.
        graph: its graph.
        losses: per task, `loss(output, target) -> scalar`.

    Returns:
        `f(params, inputs, targets) -> {group: f32[examples, tasks, n]}`; `inputs` is a
        tuple, every leaf has the examples in front.
    """
    gated, compute, tasks = gate(apply, graph), task_losses(losses, graph), len(losses)

    def one(params: Any, inputs: Any, targets: Any) -> dict[str, Float[Array, "t _"]]:
        def of_gates(gates):
            return compute(gated(gates, params, *alone(inputs)), alone(targets))

        _, pull = jax.vjp(of_gates, ones(graph))
        return jax.vmap(lambda e: pull(e)[0])(jnp.eye(tasks, dtype=jnp.float32))

    return jax.vmap(one, in_axes=(None, 0, 0))


def gradient_state(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    losses: Mapping[str, Loss],
    batches: Iterable[Batch],
    *,
    progress: bool = True,
) -> GradientState:
    """Stream the calibration data once; constant memory in the number of batches."""
    gates = per_example(apply, graph, losses)

    @jax.jit
    def step(state, params, inputs, targets, weights):
        each = gates(params, inputs, targets)

        def total(fn):
            return {g: jnp.einsum("btn,b->tn", fn(v), weights) for g, v in each.items()}

        more = GradientState(
            total(jnp.abs), total(jnp.square), weights.sum(dtype=jnp.int32)
        )
        return jax.tree.map(jnp.add, state, more)

    def zero() -> dict[str, Array]:
        return {g.name: jnp.zeros((len(losses), g.size)) for g in graph.free}

    state = GradientState(zero(), zero(), jnp.int32(0))
    stream = padded(batches, tuple(losses), progress=progress, label="saliency")
    for inputs, targets, weights in stream:
        state = step(state, params, inputs, targets, weights)
    return state


def _scores(
    sums: Mapping[str, Any], count: Any, tasks: Iterable[str]
) -> dict[str, Scores]:
    host = {g: np.asarray(v, np.float32) / float(count) for g, v in sums.items()}
    return {t: {g: v[i] for g, v in host.items()} for i, t in enumerate(tasks)}


def taylor(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    losses: Mapping[str, Loss],
    batches: Iterable[Batch],
    *,
    progress: bool = True,
) -> dict[str, Scores]:
    """Mean absolute first-order change of the loss when a channel is removed.

    Args:
        apply: the full function.
        params: its parameters.
        graph: its graph.
        losses: per task, `loss(output, target) -> scalar`.
        batches: `(x, {task: target})`, of calibration data.
        progress: show a progress bar.

    Returns:
        Per task and group, f32[n] in units of the loss: mean over examples of
        |sum over positions of activation times gradient|.

    Raises:
        DataError: empty data, a missing target, NaN scores.

    Reference:
        Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019.
    """
    state = gradient_state(apply, params, graph, losses, batches, progress=progress)
    scores = _scores(state.absolute, state.examples, losses)
    check_finite(scores, "taylor")
    return scores


def fisher(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    losses: Mapping[str, Loss],
    batches: Iterable[Batch],
    *,
    progress: bool = True,
) -> dict[str, Scores]:
    """Second-order change of the loss, by the empirical Fisher information of a gate.

    Args:
        apply: the full function.
        params: its parameters.
        graph: its graph.
        losses: per task, `loss(output, target) -> scalar`.
        batches: `(x, {task: target})`, of calibration data.
        progress: show a progress bar.

    Returns:
        Per task and group, f32[n]: half the mean over examples of (dL/dgate)^2.

    Raises:
        DataError: empty data, a missing target, NaN scores.

    Reference:
        Theis et al., Faster gaze prediction with dense networks and Fisher pruning,
        2018, eq. 10.
    """
    state = gradient_state(apply, params, graph, losses, batches, progress=progress)
    half = {g: v / 2 for g, v in state.square.items()}
    scores = _scores(half, state.examples, losses)
    check_finite(scores, "fisher")
    return scores
