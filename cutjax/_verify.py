"""Is this what was saved? Parameters, templates, arrays and code against a graph."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cutjax import _store
from cutjax._leaves import checksum, host_struct
from cutjax.dims import Keep, count
from cutjax.errors import CheckpointError, MismatchError
from cutjax.graph import Graph
from cutjax.graph_json import struct_from_json, struct_to_json
from cutjax.members import pruned
from cutjax.mirror import named_leaves
from cutjax.shrink import needed

OUTPUT = "output"


def small_shapes(graph: Graph, keep: Keep) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters under a keep."""
    widths = {name: int(np.sum(mask)) for name, mask in keep.items()}
    return {n: tuple(count(a, widths) for a in axes) for n, axes in graph.axes.items()}


def tree_of(graph: Graph, values: Mapping[str, Any], reduced: bool) -> Any:
    """The pytree of these leaves; `reduced` leaves out those that are not given."""
    leaves = [values.get(name, shape) for name, shape in graph.shapes.items()]
    tree = jax.tree.unflatten(graph.treedef, leaves)
    return pruned(tree, lambda name, _: name not in values) if reduced else tree


def check_small(
    params: Any, graph: Graph, keep: Keep, tasks: tuple[str, ...] | None
) -> bool:
    """Checks small parameters against the keep that made them.

    Args:
        params: the small parameters.
        graph: of the full model.
        keep: the kept channels.
        tasks: those that they were cut for, or None.

    Returns:
        Whether their structure is the reduced one of `cut`, without empty containers
        and what the tasks do not need, rather than the full one of `cut_params`.

    Raises:
        MismatchError: they are not those.
    """
    small, named = small_shapes(graph, keep), named_leaves(params)
    wrong = [f"{n!r} is missing" for n in sorted(needed(graph, tasks) - set(named))]
    wrong += [f"{n!r} is not in the graph" for n in named if n not in small]
    wrong += [
        f"{n!r} is {list(jnp.shape(leaf))}, not {list(small[n])}"
        for n, leaf in named.items()
        if n in small and jnp.shape(leaf) != small[n]
    ]
    found = jax.tree.structure(params)
    whole = found == graph.treedef
    if not wrong and not whole:
        reduced = jax.tree.structure(tree_of(graph, named, True))
        wrong += ["the containers differ (dict, list, ...)"] * (found != reduced)
    if wrong:
        raise MismatchError(
            f"these are not the parameters of this keep: {_some(wrong)}; pass what "
            "cut(apply, params, graph, keep, tasks) returned, and the same graph, keep "
            "and tasks"
        )
    return not whole


def check_like(source: Path, stored: Mapping[str, Any], like: Any) -> None:
    """Checks that a template is the full-size parameters of a stored graph.

    Raises:
        CheckpointError: it is not; names the first differences.
    """
    if like is None:
        return
    want = {p["path"]: p["array"][1:] for p in stored["params"]}
    have = {name: list(jnp.shape(leaf)) for name, leaf in named_leaves(like).items()}
    wrong = [f"{n!r} is missing" for n in want if n not in have]
    wrong += [f"{n!r} is not in the checkpoint" for n in have if n not in want]
    wrong += [
        f"{n!r} is {have[n]}, not {want[n]}"
        for n in want
        if n in have and have[n] != want[n]
    ]
    if wrong or list(want) != list(have):
        raise CheckpointError(
            "like= is not the full-size parameters of the model in "
            f"{source}: {_some(wrong) or 'their order differs'}; pass what was traced, "
            "or its shapes, such as jax.eval_shape(init, key)"
        )


def checked_arrays(
    source: Path, stored: Sequence[Any], graph: Graph, keep: Keep
) -> dict[str, np.ndarray]:
    """The arrays on disk, each compared with what the metadata says of it.

    Args:
        source: the checkpoint.
        stored: `(name, dtype and shape, checksum)` of each.
        graph: of the full model.
        keep: of the small one.

    Returns:
        Name -> array, as `to_host` made it.

    Raises:
        CheckpointError: one is missing, surplus, or not what it should be.
    """
    found = _store.read_arrays(source)
    small = small_shapes(graph, keep)
    out = {}
    for name, array, crc in stored:
        struct = host_struct(struct_from_json(array))
        if 0 in struct.shape:
            found.setdefault(name, np.zeros(struct.shape, struct.dtype))
        value = found.pop(name, None)
        if value is None:
            raise _store.damaged(source, f"array {name!r} is missing")
        has = struct_to_json(value)
        if has != struct_to_json(struct) or tuple(array[1:]) != small.get(name):
            raise _store.damaged(
                source,
                f"array {name!r} is {has[0]}{has[1:]}, where its metadata says "
                f"{array[0]}{array[1:]} and its keep {list(small.get(name, ()))}",
            )
        if checksum(value) != crc:
            raise _store.damaged(source, f"array {name!r} has a wrong checksum")
        out[name] = value
    if found:
        raise _store.damaged(source, f"array {min(found)!r} is not in its metadata")
    return out


def check_model(
    source: Path,
    small_apply: Callable[..., Any],
    params: Any,
    inputs: tuple[Any, ...],
    tasks: tuple[str, ...],
) -> None:
    """Traces the small function abstractly: is this the code that was cut?

    Args:
        source: the checkpoint.
        small_apply: the smaller function of the code given.
        params: the small parameters.
        inputs: arrays or shapes of one call.
        tasks: what it has to answer.

    Raises:
        CheckpointError: it cannot be called, or does not answer the tasks.
    """
    given = ", ".join(
        f"{x.dtype}{list(x.shape)}" for x in map(struct_of, jax.tree.leaves(inputs))
    )
    try:
        out = jax.eval_shape(small_apply, params, *inputs)
    except Exception as error:
        raise CheckpointError(
            f"apply is not the model in {source}, or takes other inputs: "
            f"apply(params, {given}) fails with {_store.said(error)}; pass "
            "the function that was cut, and nested inputs as "
            "load(path, apply, inputs=(...))"
        ) from error
    if tasks != (OUTPUT,) and not _answers(out, set(tasks)):
        raise CheckpointError(
            f"apply is not the model in {source}: nothing that it returns is a dict of "
            f"the tasks {list(tasks)}"
        )


def _answers(out: Any, tasks: set[str]) -> bool:
    def hit(node: Any) -> bool:
        return isinstance(node, dict) and tasks <= set(node)

    return any(map(hit, jax.tree.leaves(out, is_leaf=hit)))


def struct_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array or a number."""
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _some(wrong: Sequence[str]) -> str:
    more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
    return "; ".join(wrong[:4]) + more
