"""A balance within the training step, through a loop that knows nothing of it.

The state travels as a parameter, one vector `balance` beside the others, whose
"gradient" is by how much it is to fall; plain descent of rate 1 then makes it the next
state. `fit` sees parameters, outputs, a loss and an optimiser as always.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from cutjax.data.examples import inputs_in
from cutjax.errors import DataError
from cutjax.metrics import named
from cutjax.mirror import named_leaves, path_name
from cutjax.recover.balance import Balance, Weights
from cutjax.recover.beside import beside
from cutjax.recover.distill import Each
from cutjax.trace import trace
from cutjax.training.parts import updated, without

BALANCE = "balance"
PULL = "balance:pull"


class Balanced(NamedTuple):
    """What to hand to `fit` in place of an unbalanced training."""

    train_apply: Callable[..., Any]
    params: Any
    loss: Callable[..., Any]
    optimizer: optax.GradientTransformation


def balanced(
    balance: Balance,
    train_apply: Callable[..., tuple[Any, Any]],
    params: Any,
    each: Each,
    optimizer: optax.GradientTransformation,
    x: Any,
    *,
    tasks: Sequence[str],
    extra: Callable[[Any, Mapping[str, Any]], Float[Array, ""]] | None = None,
) -> Balanced:
    """A training whose losses are weighed by a balance.

    Args:
        balance: the balance.
        train_apply: `(params, *inputs) -> (outputs, updates)`.
        params: a dict or another mapping; an entry `balance` is added.
        each: `(outputs, y) -> {task: scalar}`.
        optimizer: of the parameters; the state of the balance moves by itself.
        x: a batch of inputs, or its shape.
        tasks: the tasks.
        extra: `(outputs, y) -> scalar`, added with weight one.

    Returns:
        Function, parameters, loss and optimiser for `cutjax.fit.fit`. The loss reports
        `weight:<task>` too.
    """
    answer = _naming(train_apply)
    state = balance.init(tasks)
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, state))
    path = balance.shared
    if path == "":
        path = shared_kernel(answer, params, x, tasks=tasks)

    def apply(p: Any, *inputs: Any) -> tuple[Any, Any]:
        own = without(p, (BALANCE,))
        outputs, updates, pull = _pulling(answer, own, inputs, path)
        return {**outputs, BALANCE: p[BALANCE], PULL: pull}, updates

    def loss(outputs: Any, y: Mapping[str, Any]) -> tuple[Any, dict[str, Array]]:
        outputs = dict(outputs)
        vector, pull = outputs.pop(BALANCE), outputs.pop(PULL)
        found = each(outputs, y)
        values = jnp.stack([found[t] for t in tasks])
        norms = (
            jnp.zeros_like(values) if path is None else _norms(each, outputs, y, pull)
        )
        now = jax.lax.stop_gradient((unravel(vector), values, norms))
        weights, after = jax.lax.stop_gradient(balance.step(*now))
        total = weights @ values + _falling(vector, ravel_pytree(after)[0])
        weighed = {f"weight:{t}": w for t, w in zip(tasks, weights, strict=True)}
        if extra is not None:
            more = extra(outputs, y)
            return total + more, {**found, **weighed, "features": more}
        return total, {**found, **weighed}

    both = beside(optimizer, (BALANCE,))
    return Balanced(apply, updated(params, {BALANCE: flat}), loss, both)


def shared_kernel(
    train_apply: Callable[..., tuple[Any, Any]],
    params: Any,
    x: Any,
    *,
    tasks: Sequence[str],
) -> str:
    """The path of the last kernel that all tasks share.

    Args:
        train_apply: `(params, *inputs) -> (outputs, updates)`.
        params: its parameters.
        x: a batch of inputs, or its shape.
        tasks: the tasks.

    Returns:
        Its path name.

    Raises:
        DataError: no kernel serves all of the tasks.
    """

    def answers(p: Any, *inputs: Any) -> dict[str, Any]:
        return {t: train_apply(p, *inputs)[0][t] for t in tasks}

    graph = trace(answers, params, *inputs_in(x), on_unknown="pin")
    found = [
        term.path
        for term in graph.terms
        if term.path is not None and set(graph.reach[term.path]) >= set(tasks)
    ]
    if not found:
        raise DataError(f"gradnorm: no kernel serves all of {list(tasks)}")
    return found[-1]


def _naming(train_apply: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """The same function, with its outputs by task."""

    def apply(params: Any, *inputs: Any) -> tuple[Any, Any]:
        outputs, updates = train_apply(params, *inputs)
        return named(outputs), updates

    return apply


def _pulling(
    train_apply: Callable, params: Any, inputs: tuple[Any, ...], path: str | None
) -> Any:
    """Outputs, updates, and the map from their cotangents to that of a kernel."""
    if path is None:
        outputs, updates = train_apply(params, *inputs)
        return outputs, updates, ()

    def of_kernel(kernel: Any) -> Any:
        def put(at: Any, leaf: Any) -> Any:
            return kernel if path_name(at) == path else leaf

        return train_apply(jax.tree_util.tree_map_with_path(put, params), *inputs)

    kernel = named_leaves(params)[path]
    outputs, pull, updates = jax.vjp(of_kernel, kernel, has_aux=True)
    return outputs, updates, pull


def _norms(each: Each, outputs: Any, y: Mapping[str, Any], pull: Any) -> Weights:
    """The norm of every task's gradient at the shared kernel."""
    outputs = jax.lax.stop_gradient(outputs)
    found, back = jax.vjp(lambda out: each(out, y), outputs)
    norms = []
    for task in found:
        one = {t: jnp.ones_like(v) * (t == task) for t, v in found.items()}
        (slope,) = pull(*back(one))
        norms.append(jnp.linalg.norm(slope))
    return jax.lax.stop_gradient(jnp.stack(norms))


def _falling(vector: Array, after: Array) -> Float[Array, ""]:
    """Zero, with the gradient by which plain descent of rate 1 leads to `after`."""
    change = jax.lax.stop_gradient(vector - after)
    return jnp.sum(change * (vector - jax.lax.stop_gradient(vector)))
