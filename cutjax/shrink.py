"""Applying a keep: to parameters (`mask`, `cut_params`) and to functions (`shrink`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from cutjax.cost import stays
from cutjax.dims import Fixed, Keep, count, kept
from cutjax.errors import KeepError, MismatchError, suggest
from cutjax.given import several
from cutjax.graph import Graph
from cutjax.members import map_mirrored, pruned
from cutjax.mirror import Dims, examples_axis, mirrored, named_leaves, path_name, states
from cutjax.placed import relaxed
from cutjax.resize import Axes, Hook, resized
from cutjax.rules.base import Value

GONE = object()
"""Stands for the state of a parameter that no chosen task needs."""


def select(apply: Callable[..., Any], tasks: Sequence[str] | str) -> Callable[..., Any]:
    """The same function answering only these tasks.

    Args:
        apply: `apply(params, *inputs) -> {task: output}`.
        tasks: the tasks to answer.

    Returns:
        A function with the same arguments; what the other tasks needed is dead code,
        which jit removes. `cut(..., tasks=...)` removes their parameters too.

    Raises:
        KeepError: when called, if the function does not answer a task.
    """
    chosen = several(tasks)

    def selected(params: Any, *inputs: Any) -> dict[str, Any]:
        out = apply(params, *inputs)
        if not isinstance(out, dict):
            out = {"output": out}
        for task in chosen:
            if task not in out:
                raise KeepError(f"no task {task!r}; {suggest(task, out)}")
        return {task: out[task] for task in chosen}

    return selected


def mask(params: Any, graph: Graph, keep: Keep) -> Any:
    """Zero the removed channels in every member; shapes stay.

    The masked function equals the cut one where no statistic runs over the channels and
    what reads them multiplies by a masked kernel. A sum, or a product of two
    activations, over channels that are not zero at zero (`elu(q) + 1`) still counts
    masked channels; the cut function, as narrower layers would, does not. Where a
    kernel's columns are divided by their own norms, a masked one is 0/0: the masked
    function answers NaN, the cut one is right.

    Args:
        params: the full parameters, or any pytree that mirrors them.
        graph: their graph.
        keep: the channels to keep.

    Returns:
        A pytree of the same shapes.

    Raises:
        KeepError: the keep does not fit the graph.
        MismatchError: the parameters do not match the graph.
    """

    def zero(leaf: Any, axes: Axes) -> Any:
        for i, axis in enumerate(axes):
            stays = kept(axis, keep)
            if not stays.all():
                shape = [1] * leaf.ndim
                shape[i] = stays.size
                leaf = jnp.where(stays.reshape(shape), leaf, jnp.zeros((), leaf.dtype))
        return leaf

    return _map_members(zero, params, graph, keep)


def cut_params(params: Any, graph: Graph, keep: Keep) -> Any:
    """The smaller pytree: only the kept channels of every member.

    Args:
        params: the full parameters, or a pytree that mirrors them (momenta, averages);
            for the whole state of an optimiser there is `cut_state`.
        graph: their graph.
        keep: the channels to keep.

    Returns:
        A pytree of the same structure; leaves that lose nothing are the same arrays.

    Raises:
        KeepError: the keep does not fit the graph.
        MismatchError: the parameters do not match the graph.
    """
    return _map_members(
        lambda leaf, axes: narrowed(leaf, axes, keep), params, graph, keep
    )


def narrowed(leaf: Any, axes: Axes, keep: Keep, *, first: int = 0) -> Any:
    """What a keep leaves of an array with these axes, from its axis `first` on."""
    for i, axis in enumerate(axes, first):
        stays = kept(axis, keep)
        if not stays.all():
            leaf = take(leaf, np.flatnonzero(stays), i)
    return leaf


def take(leaf: Any, index: np.ndarray, axis: int) -> Any:
    """Some positions of an axis; on the host where that saves compiling a gather."""
    if isinstance(leaf, np.ndarray):
        return np.take(leaf, index, axis=axis)
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array):
        return jnp.take(leaf, index, axis=axis)
    plain = not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
    device = jax.local_devices()[0]
    if plain and device.platform == "cpu" and leaf.devices() == {device}:
        return jnp.asarray(np.take(np.asarray(leaf), index, axis=axis))
    return jnp.take(relaxed(leaf), index, axis=axis)


def _map_members(change: Callable, params: Any, graph: Graph, keep: Keep) -> Any:
    # Which outputs a keep cuts off is for functions to say: they know the tasks.
    graph.check_keep(keep, ())
    return map_mirrored(
        *(change, params, graph),
        check=check_params,
        fits=lambda shape, graph, name: shape == graph.shapes[name].shape,
        remedy=": such a leaf cannot be cut along; make it again from the cut "
        "parameters (`optimizer.init`)",
    )


def check_params(params: Any, graph: Graph) -> None:
    """Check that parameters are those that were traced.

    Raises:
        MismatchError: names the first parameters that are missing, extra or misshapen.
    """
    named = named_leaves(params)
    wrong = [f"{n!r} is missing" for n in graph.shapes if n not in named]
    wrong += [f"{n!r} is not in the graph" for n in named if n not in graph.shapes]
    for name, leaf in named.items():
        want = graph.shapes.get(name)
        if want is not None and tuple(jnp.shape(leaf)) != want.shape:
            wrong.append(f"{name!r} is {list(jnp.shape(leaf))}, not {list(want.shape)}")
    if wrong or jax.tree.structure(params) != graph.treedef:
        said = "; ".join(wrong[:4]) or "the containers differ (dict, list, tuple, ...)"
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise MismatchError(f"parameters do not match the graph: {said}{more}")


def shrink(
    apply: Callable[..., Any],
    graph: Graph,
    keep: Keep,
    tasks: Sequence[str] | str | None = None,
) -> Callable[..., Any]:
    """The smaller function: what the same code with narrower layers computes.

    Works on any function over the same parameters: train mode with mutable state,
    another batch or input size, an initialiser. Arguments and results that mirror
    parameters are small too. It is traced at full size whenever it is called, so call
    it under `jax.jit`; the compiled program holds nothing of full size.

    Args:
        apply: the full function.
        graph: from `trace` of any function over the same parameters.
        keep: the channels to keep.
        tasks: answer only these: in results that are dicts over the tasks, wherever
            they stand, as in `(outputs, new_state)`, the others are gone, and so is the
            state of parameters that none of these tasks needs.

    Returns:
        A function of the small parameters and the same inputs.

    Raises:
        KeepError: the keep does not fit the graph; when called, that this function
            ties or needs channels in a way that the keep does not allow.
        MismatchError: when called, that the parameters are not the small ones.
    """
    return rewrite(apply, graph, keep, tasks=tasks)


def rewrite(
    apply: Callable[..., Any],
    graph: Graph,
    keep: Keep,
    *,
    tasks: Sequence[str] | str | None = None,
    hook: Hook | None = None,
    flat: bool = False,
) -> Callable[..., Any]:
    """`shrink` with all its options.

    Args:
        apply: the full function.
        graph: its graph.
        keep: the channels to keep.
        tasks: see `shrink`.
        hook: changes what is read at each contraction; see `resize.Evaluator`.
        flat: inlines nested calls that read channels; see `resize.Evaluator`.

    Returns:
        A function of the small parameters and the same inputs.
    """
    chosen = graph.check_tasks(tasks)
    graph.check_keep(keep, chosen)
    absent = frozenset(graph.shapes) - needed(graph, tasks)
    widths = {name: int(np.sum(m)) for name, m in keep.items()}
    small = {
        name: tuple(count(axis, widths) for axis in axes)
        for name, axes in graph.axes.items()
    }

    def rewritten(*args: Any) -> Any:
        args = (_complete(args[0], graph, small, absent), *args[1:]) if args else args
        leaves, tree = jax.tree_util.tree_flatten_with_path(args)
        values = [leaf for _, leaf in leaves]
        names = [_match(path, leaf, small) for path, leaf in leaves]
        axes = [
            graph.axes[name] if name is not None else _fixed(leaf)
            for name, leaf in zip(names, values, strict=True)
        ]
        trees: list[Any] = []
        held: list[str | None] = []

        def flat_apply(*flat_args: Any) -> list[Any]:
            out = apply(*jax.tree.unflatten(tree, flat_args))
            out = out if tasks is None else _answering(out, graph, chosen)
            flat, out_tree = jax.tree.flatten(out)
            trees.append(out_tree)
            return flat

        def out_axes(ins: Sequence[Value], outs: Sequence[Value]) -> list[Axes | None]:
            held[:] = _states(graph, names, ins, trees[-1], outs)
            return [None if n is None or n in absent else graph.axes[n] for n in held]

        result = resized(
            flat_apply,
            axes,
            keep,
            values,
            data=[name is None for name in names],
            out_axes=out_axes,
            hook=hook,
            flat=flat,
            on_unknown=graph.on_unknown,
        )
        if tasks is None:
            return jax.tree.unflatten(trees[-1], result.outs)
        left = [
            GONE if name in absent else value
            for name, value in zip(held, result.outs, strict=True)
        ]
        out = jax.tree.unflatten(trees[-1], left)
        return pruned(out, lambda _, leaf: leaf is GONE)

    return rewritten


def _states(
    graph: Graph,
    names: Sequence[str | None],
    ins: Sequence[Value],
    tree: Any,
    outs: Sequence[Value],
) -> list[str | None]:
    """Which parameters the outputs mirror; `names` are those of the arguments."""
    params: dict[str, list[Dims]] = {}
    for name, value in zip(names, ins, strict=True):
        if name is not None:
            params.setdefault(name, []).append(value.dims)
    given = zip(names, ins, strict=True)
    has = examples_axis([value.dims for name, value in given if name is None])
    shapes = [
        jax.ShapeDtypeStruct(tuple(d.size for d in value.dims), float) for value in outs
    ]
    return states(
        jax.tree.unflatten(tree, shapes),
        graph.treedef,
        {name: s.shape for name, s in graph.shapes.items()},
        lambda i, name: has(outs[i].dims, params.get(name, [])),
    )


def _fixed(leaf: Any) -> Axes:
    return tuple(Fixed(n, "an input") for n in jnp.shape(leaf))


def _match(path: tuple[Any, ...], leaf: Any, small: Mapping[str, Any]) -> str | None:
    """The parameter that an argument's leaf is; the first argument must fit whole."""
    name = path_name(path[1:])
    if path[0].idx == 0 and name in small:
        return name
    return mirrored(name, tuple(jnp.shape(leaf)), small)


def _complete(params: Any, graph: Graph, small: Mapping[str, Any], absent) -> Any:
    """The first argument, with zeros for the parameters that may be absent."""
    named = named_leaves(params)
    if not any(name in graph.shapes for name in named):
        if jax.tree_util.all_leaves([params]) or any(
            mirrored(n, tuple(jnp.shape(leaf)), small) for n, leaf in named.items()
        ):
            return params
        raise MismatchError(
            "the first argument holds none of the parameters of the graph, such as "
            f"{next(iter(graph.shapes))!r}; call small_apply(small_params, *inputs)"
        )
    wrong = [
        f"{n!r} is {list(jnp.shape(leaf))}, not {list(small[n])}"
        for n, leaf in named.items()
        if n in small and tuple(jnp.shape(leaf)) != small[n]
    ]
    wrong += [f"{n!r} is not a parameter" for n in named if n not in graph.shapes]
    gone = [n for n in graph.shapes if n not in named]
    wrong += [f"{n!r} is missing" for n in gone if n not in absent]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise MismatchError(
            f"these are not the cut parameters: {'; '.join(wrong[:4])}{more}"
        )
    if not gone:
        return params
    filled = [
        named[n] if n in named else jnp.zeros(small[n], s.dtype)
        for n, s in graph.shapes.items()
    ]
    return jax.tree.unflatten(graph.treedef, filled)


def cut(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    keep: Keep,
    tasks: Sequence[str] | str | None = None,
) -> tuple[Callable[..., Any], Any]:
    """The smaller function and the smaller pytree.

    Args:
        apply: the full function.
        params: the full parameters.
        graph: their graph.
        keep: the channels to keep.
        tasks: answer only these; parameters that none of them needs are gone.

    Returns:
        `(small_apply, small_params)`.

    Raises:
        KeepError: unknown task, or a keep that does not fit.
        MismatchError: the parameters do not match the graph.
    """
    check_params(params, graph)
    small = cut_params(params, graph, keep)
    small_apply = shrink(apply, graph, keep, tasks)
    absent = frozenset(graph.shapes) - needed(graph, tasks)
    return small_apply, pruned(small, lambda name, _: name in absent)


def needed(graph: Graph, tasks: Sequence[str] | str | None) -> frozenset[str]:
    """The parameters that some of these tasks need; all, for all tasks or None."""
    chosen = graph.check_tasks(tasks)
    return frozenset(
        n for n, reach in graph.reach.items() if stays(reach, graph, chosen)
    )


def _answering(out: Any, graph: Graph, chosen: tuple[str, ...]) -> Any:
    """A result in which every dict over the tasks holds only the chosen ones."""

    def over_tasks(node: Any) -> bool:
        return isinstance(node, dict) and set(node) == set(graph.tasks)

    def choose(node: Any) -> Any:
        return {t: node[t] for t in chosen} if over_tasks(node) else node

    return jax.tree.map(choose, out, is_leaf=over_tasks)
