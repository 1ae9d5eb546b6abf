"""What one step sees of a batch, from one forward and one backward pass per task.

Gates, probes at what readers make, and parameters enter one function; the losses are
summed over the batch, so that a single pull per task gives gate gradients for every
example and weight gradients for the batch. Nothing per example and weight is formed.
Whatever no criterion asked for is not differentiated.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Int

from cutjax.gate import Gates, gate, ones
from cutjax.graph import Graph
from cutjax.inputs import examples, first
from cutjax.mirror import named_leaves
from cutjax.readers import rows, single
from cutjax.saliency.criterion import Problem
from cutjax.saliency.curvature import curved_sums, number_of
from cutjax.saliency.stream import Loss, singles, task_losses
from cutjax.saliency.tap import Tapped, tap
from cutjax.shrink import rewrite

GATES, READERS, ACTIVATIONS, WEIGHTS = "gates", "readers", "activations", "weights"


class Seen(NamedTuple):
    """What a step sees of `b` examples and `t` tasks.

    `weights` are zero for padding; `first` is the number of examples before this batch.
    `gates`: per group, dL/dgate. `unread`: slopes of gates at readers without a kernel.
    `inputs`: per (reader, group), rows read, `[b, positions, n]`. `outputs`: per
    reader, slope rows at what it makes, `[b, t, positions, m]`. Slopes of these two are
    draws whose second moment is the losses' curvature (`curvature`). `kernels`: per
    (reader, group) `[k, n, m]`. `energies`: per reader, squares of what it reads for
    each row that it makes, as its kernel weighs them, `[b, positions]`. `activations`:
    per group, what each of its readers reads, `[b, positions, n]`. `slopes`: per
    floating parameter, the gradient of the summed losses, `[t, ...]`. `of_gates`,
    `of_weights`: the summed losses `[t]` as functions of gates common to all examples,
    and of `{path: parameter}`.
    """

    weights: Float[Array, "b"]
    first: Int[Array, ""]
    targets: Mapping[str, Any]
    losses: Float[Array, "b t"]
    gates: dict[str, Float[Array, "b t _"]]
    unread: dict[str, Float[Array, "b t _"]]
    inputs: dict[tuple[int, str], Inexact[Array, "b p n"]]
    outputs: dict[int, Inexact[Array, "b t p m"]]
    kernels: dict[tuple[int, str], Inexact[Array, "k n m"]]
    energies: dict[int, Float[Array, "b p"]]
    activations: dict[str, list[Inexact[Array, "b q n"]]]
    slopes: dict[str, Float[Array, "t *shape"]]
    of_gates: Callable[[Any], Float[Array, "t"]]
    of_weights: Callable[[Any], Float[Array, "t"]]


class Handles(NamedTuple):
    """What the losses are differentiated by; per example but for `weights`."""

    gates: Gates
    unread: Gates
    probes: dict[int, Any]
    weights: dict[str, Any]


def look(problem: Problem, needs: frozenset[str]) -> Callable[..., Seen]:
    """`see(params, inputs, targets, weights, first) -> Seen`, to be jitted.

    Args:
        problem: the function and its losses.
        needs: what to look at.

    Returns:
        The step; `inputs` is a tuple, every leaf has the examples in front, or no axis.
    """
    one = _one_example(problem, needs)
    tasks = len(problem.losses)

    def see(params, inputs, targets, weights, before) -> Seen:
        batch, each = singles((inputs, targets))
        run = _for_each(one, each)
        size = len(weights)
        handles, axes = _handles(problem, params, inputs, needs, size)

        def total(handles: Handles):
            (losses, curved), tapped = run(params, handles, *batch)
            sums = (jnp.einsum("b,bt->t", weights, v) for v in (losses, curved))
            return tuple(sums), (losses, tapped)

        _, pull, (losses, tapped) = jax.vjp(total, handles, has_aux=True)
        slopes = handles
        if handles.gates or handles.weights:
            slopes = _pulled(lambda e: pull((e, 0 * e)), tasks, WEIGHTS in needs)
        if handles.unread:
            bent = _pulled(lambda e: pull((0 * e, e)), tasks, False)
            slopes = slopes._replace(unread=bent.unread, probes=bent.probes)
        gates, unread, probes = jax.tree.map(
            lambda g: jnp.moveaxis(g, 0, 1), tuple(slopes)[:3]
        )
        # Sums over batches of bfloat16 would lose what is added last.
        of_each = {p: g.astype(jnp.float32) for p, g in slopes.weights.items()}

        def of_gates(common: Any) -> Any:
            each = jax.tree.map(lambda v: jnp.broadcast_to(v, (size, *v.shape)), common)
            return total(Handles(each, {}, {}, {}))[0][0]

        def of_weights(named: Any) -> Any:
            return total(Handles({}, {}, {}, named))[0][0]

        return Seen(
            *(weights, before, targets, losses, gates, unread, tapped.inputs),
            {k: _mean_rows(g, axes[k]) for k, g in probes.items()},
            *(tapped.kernels, tapped.energies, tapped.activations),
            *(of_each, of_gates, of_weights),
        )

    return see


_TAPPED = Tapped(0, None, 0, 0, 0)  # type: ignore[arg-type]
_HANDLES = Handles(0, 0, 0, None)  # type: ignore[arg-type]


def _for_each(one: Callable, axes: Any) -> Callable:
    """`one` of all examples side by side; in turn, where JAX has no rule for that."""
    side_by_side = jax.vmap(one, (None, _HANDLES, *axes), out_axes=(0, _TAPPED))

    def run(params: Any, handles: Handles, inputs: Any, targets: Any) -> Any:
        try:
            return side_by_side(params, handles, inputs, targets)
        except NotImplementedError:
            return in_turn(params, handles, inputs, targets)

    def in_turn(params: Any, handles: Handles, *batch: Any) -> Any:
        apart = handles._replace(weights=None)  # type: ignore[arg-type]
        size = examples(batch=batch)

        def at(i: Any, own: Handles) -> Any:
            mine = jax.tree.map(lambda a: jnp.asarray(a)[i] if np.ndim(a) else a, batch)
            losses, tapped = one(params, own._replace(weights=handles.weights), *mine)
            return losses, tapped._replace(kernels={}), tapped.kernels

        # Kernels are every example's: a loop would hold one copy for each.
        kernels = at(0, jax.tree.map(lambda a: a[0], apart))[2]
        each = (jnp.arange(size), apart)
        losses, tapped = jax.lax.map(lambda here: at(*here)[:2], each)
        return losses, tapped._replace(kernels=kernels)

    return run


def _pulled(pull: Callable, tasks: int, unrolled: bool) -> Handles:
    """Gradients of every task's loss, tasks in front.

    Gradients of kernels for several tasks at once are grouped convolutions, which XLA's
    CPU backend runs at a fraction of the speed: these tasks are taken one by one.
    """
    each = jnp.eye(tasks, dtype=jnp.float32)
    if not unrolled:
        try:
            return jax.vmap(lambda e: pull(e)[0])(each)
        except NotImplementedError:
            pass  # as in `_for_each`
    return jax.tree.map(lambda *v: jnp.stack(v), *(pull(e)[0] for e in each))


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
        tuple, every leaf has the examples in front, or no axis.
    """

    def gates(params: Any, inputs: Any, targets: Any) -> dict[str, Array]:
        problem = Problem(apply, params, graph, losses)
        weights = jnp.ones(examples(inputs=inputs, targets=targets))
        see = look(problem, frozenset({GATES}))
        return see(params, inputs, targets, weights, jnp.int32(0)).gates

    return gates


def floats(params: Any) -> dict[str, Any]:
    """The floating leaves of a pytree by path: what can be differentiated."""
    return {
        name: leaf
        for name, leaf in named_leaves(params).items()
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    }


def _one_example(problem: Problem, needs: frozenset[str]):
    """`f(params, handles, inputs, targets) -> ((losses, curved), tapped)`.

    Of one example; `losses` and `curved` are [t], see `curved_sums`.
    """
    graph, compute = problem.graph, task_losses(problem.losses, problem.graph)
    apply = problem.apply
    if apply is None:
        raise TypeError("this criterion reads data: pass the function, not None")
    # Looking inside of nested calls inlines them, and with them derivative rules of
    # the user's own; gates alone do not need that.
    inside = bool(needs & {READERS, ACTIVATIONS})

    def one(params, handles: Handles, inputs, targets):
        tapped, params = Tapped({}, {}, {}, {}, {}), _filled(params, handles.weights)
        if inside:
            hook = tap(tapped, {}, handles, graph, READERS in needs)
            fn = rewrite(apply, graph, {}, hook=hook, flat=True)
            out = fn(params, *inputs)
        else:
            out = gate(apply, graph)(handles.gates, params, *inputs)
        losses = compute(out, targets)
        curved = jnp.zeros_like(losses)
        if READERS in needs:
            number = number_of(inputs)
            curved = curved_sums(problem.losses, out, targets, number)
        return (losses, curved), tapped

    return one


def _filled(params: Any, named: Mapping[str, Any]) -> Any:
    """Parameters with some of them given by path."""
    if not named:
        return params
    leaves, tree = jax.tree.flatten(params)
    paths = named_leaves(params)
    return jax.tree.unflatten(
        tree, [named.get(p, leaf) for p, leaf in zip(paths, leaves, strict=True)]
    )


def _handles(problem: Problem, params, inputs, needs, size: int):
    """Ones and zeros to differentiate by; the axes made at each probe."""
    graph = problem.graph
    each = {g: jnp.ones((size, *v.shape)) for g, v in ones(graph).items()}
    gates = each if GATES in needs else {}
    axes: dict[int, tuple[int, ...]] = {}
    probes: dict[int, Any] = {}
    if READERS in needs:
        probes = _probes(problem, params, inputs, axes, size)
    unread = each if READERS in needs else {}
    return Handles(
        gates, unread, probes, floats(params) if WEIGHTS in needs else {}
    ), axes


def _probes(problem: Problem, params, inputs, axes: dict, size: int) -> dict[int, Any]:
    """Zeros like what each reader makes of one example, for every example."""
    graph = problem.graph

    def made(params, inputs):
        tapped = Tapped({}, {}, {}, {}, {})
        hook = tap(tapped, axes, Handles({}, {}, {}, {}), graph, True)
        rewrite(problem.apply, graph, {}, hook=hook, flat=True)(params, *inputs)  # type: ignore[arg-type]
        return tapped.made

    one = jax.eval_shape(lambda inputs: first(inputs, 1), inputs)
    shapes = jax.eval_shape(made, params, one)
    return {k: jnp.zeros((size, *s.shape), s.dtype) for k, s in shapes.items()}


def _mean_rows(
    grads: Inexact[Array, "b t ..."], axes: tuple[int, ...]
) -> Inexact[Array, "b t p m"]:
    """Gradients as rows whose second moment is a mean over positions."""
    each = jax.vmap(jax.vmap(lambda g: rows(g, axes)))
    flat = single(each(grads))
    return flat / np.sqrt(flat.shape[2])
