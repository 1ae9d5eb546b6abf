"""Second moments of what readers read, and of the gradients of what they make.

One pass over the calibration data; the state has constant size, adds up over batches,
and serves every task subset and every budget afterwards.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cutjax.dims import Fixed, Leaf, Product, channels
from cutjax.errors import DataError
from cutjax.gate import gated_operand, ones
from cutjax.graph import Graph
from cutjax.readers import channel_axes, is_linear, kernel_matrix, out_axes, rows
from cutjax.resize import Kept, Reader, Run, freeze
from cutjax.saliency.stream import Batch, Loss, alone, padded, task_losses
from cutjax.shrink import rewrite
from cutjax.unify import leaf_vars


class Moments(NamedTuple):
    """Sums over examples, by (reader, group).

    `inputs`: second moment [n, n] of the group's channels, scaled to the positions that
    the reader makes. `outputs`: [tasks, m, m], of the loss gradient at what it makes,
    mean over positions. `kernels`: [k, n, m]; k runs over the window and over whatever
    else is contracted beside the group. `gates`: by group [tasks, n], squared gate
    gradients at readers that have no kernel (products of activations, loops).
    """

    inputs: dict[tuple[int, str], Float[Array, "n n"]]
    outputs: dict[int, Float[Array, "t m m"]]
    gates: dict[str, Float[Array, "t _"]]
    kernels: dict[tuple[int, str], Float[Array, "k n m"]]
    examples: Float[Array, ""]


class _Seen(NamedTuple):
    """What one run shows: rows read, kernels, and how the rows are to be counted."""

    inputs: dict[tuple[int, str], Array]
    kernels: dict[tuple[int, str], Array]
    made: dict[int, Array]


def collect(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    losses: Mapping[str, Loss],
    batches: Iterable[Batch],
    *,
    progress: bool = True,
) -> Moments:
    """Read the calibration data once.

    Args:
        apply: the full function.
        params: its parameters.
        graph: its graph.
        losses: per task, `loss(output, target) -> scalar`.
        batches: `(x, {task: target})`.
        progress: show a progress bar.

    Returns:
        Moments, means over examples.

    Raises:
        DataError: empty data or a missing target.
    """
    observe = jax.vmap(
        _one_example(apply, graph, losses),
        in_axes=(None, 0, 0),
        out_axes=(0, 0, 0, None),
    )

    @jax.jit
    def step(params, inputs, targets, weights):
        read, grads, gates, kernels = observe(params, inputs, targets)
        return Moments(
            {k: jnp.einsum("bpm,bpn,b->mn", v, v, weights) for k, v in read.items()},
            {
                k: jnp.einsum("btpm,btpn,b->tmn", v, v, weights)
                for k, v in grads.items()
            },
            {k: jnp.einsum("btn,b->tn", v**2, weights) for k, v in gates.items()},
            kernels,
            weights.sum(),
        )

    @jax.jit
    def add(state, more):
        return jax.tree.map(jnp.add, state, more)._replace(kernels=more.kernels)

    state: Any = None
    stream = padded(batches, tuple(losses), progress=progress, label="moments")
    for inputs, targets, weights in stream:
        more = step(params, inputs, targets, weights)
        state = more if state is None else add(state, more)
    _check(state)
    means = jax.tree.map(lambda v: v / state.examples, state)
    return means._replace(kernels=state.kernels, examples=state.examples)


def _check(state: Moments) -> None:
    """Check that nothing seen was NaN: eigenvalues of it would fail without a word."""
    by_group = {f"{group} (reader {r})": v for (r, group), v in state.inputs.items()}
    by_reader = {f"reader {r}": v for r, v in state.outputs.items()}
    for name, value in {**by_group, **by_reader, **state.gates}.items():
        if not bool(jnp.isfinite(value).all()):
            raise DataError(
                f"joint: what was seen of {name} is NaN or infinite; look for NaN in "
                "inputs, targets or parameters, and for losses that overflow"
            )


def _one_example(apply, graph: Graph, losses: Mapping[str, Loss]):
    """`f(params, inputs, targets)` for one example: rows, gradients, gates, kernels."""
    compute, tasks = task_losses(losses, graph), len(losses)

    def observe(params, inputs, probes, gates):
        seen = _Seen({}, {}, {})
        axes: dict[int, tuple[int, ...]] = {}
        hook = _tap(seen, axes, probes, gates)
        out = rewrite(apply, graph, {}, hook=hook, flat=True)(params, *alone(inputs))
        return out, seen, axes

    def one(params, inputs, targets):
        gates = ones(graph)
        axes: dict[int, tuple[int, ...]] = {}

        def made(params, inputs):
            _, seen, found = observe(params, inputs, {}, gates)
            axes.update(found)
            return seen.made

        shapes = jax.eval_shape(made, params, inputs)
        probes = {k: jnp.zeros(s.shape, s.dtype) for k, s in shapes.items()}

        def of_probes(probes, gates):
            out, seen, _ = observe(params, inputs, probes, gates)
            return compute(out, alone(targets)), (seen.inputs, seen.kernels)

        _, pull, (read, kernels) = jax.vjp(of_probes, probes, gates, has_aux=True)
        grads, of_gates = jax.vmap(pull)(jnp.eye(tasks, dtype=jnp.float32))
        return (
            read,
            {k: _mean_rows(g, axes[k]) for k, g in grads.items()},
            of_gates,
            kernels,
        )

    return one


def _mean_rows(
    grads: Float[Array, "t ..."], axes: tuple[int, ...]
) -> Float[Array, "t p m"]:
    """Gradients as rows whose second moment is a mean over positions."""
    flat = jax.vmap(lambda g: rows(g, axes))(grads).astype(jnp.float32)
    return flat / np.sqrt(flat.shape[1])


def _tap(seen: _Seen, axes: dict[int, tuple[int, ...]], probes, gates):
    """A hook that notes what readers read and adds a probe to what they make.

    Readers are numbered in order of evaluation; those without a kernel are gated.
    """
    numbers = iter(range(1 << 30))

    def hook(kept: Kept, reader: Reader, run: Run, args: list[Any]) -> list[Any]:
        number, at = next(numbers), reader.site.at
        if not is_linear(reader):
            args = list(args)
            args[at] = gated_operand(kept, reader, args, gates)
            return run(args)
        (out,) = run(args)
        axes[number] = out_axes(reader)
        read = channel_axes(reader, at)
        matrix = kernel_matrix(reader, args[1 - at])
        made = out.size // matrix.shape[-1]
        for name in _names(kept, reader, gates):
            index = positions(kept, reader, name)
            flat = rows(args[at], read)[:, index].reshape(-1, index.shape[1])
            flat = flat.astype(jnp.float32) * np.sqrt(made / flat.shape[0])
            seen.inputs[number, name] = flat
            kernel = matrix[:, index].astype(jnp.float32)
            seen.kernels[number, name] = kernel.reshape(-1, *kernel.shape[2:])
            seen.made[number] = out
        return [out + probes[number] if number in probes else out]

    return hook


def _names(kept: Kept, reader: Reader, gates: Mapping[str, Any]) -> list[str]:
    """The gated groups that a reader reads."""
    at = reader.site.at
    found = (
        kept.name(v) or ""
        for axis in channel_axes(reader, at)
        for v in leaf_vars(reader.ins[at].dims[axis])
    )
    return list(dict.fromkeys(name for name in found if name in gates))


def positions(kept: Kept, reader: Reader, name: str) -> Int[np.ndarray, "rest n"]:
    """Where a group's channels stand in the flattened contracted axes of a reader."""

    def label(var):
        return Leaf(name, var.size) if kept.name(var) == name else Fixed(var.size)

    at = reader.site.at
    dims = [reader.ins[at].dims[axis] for axis in channel_axes(reader, at)]
    found = channels(Product(tuple(freeze(d, label) for d in dims)), name)
    order = np.argsort(found, kind="stable")[int((found < 0).sum()) :]
    return order.reshape(int(found.max()) + 1, -1).T
