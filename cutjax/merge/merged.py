"""Several networks as one: an ordinary function of an ordinary pytree."""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from cutjax.errors import MismatchError
from cutjax.given import as_traced
from cutjax.merge.average import averaged
from cutjax.merge.join import Joint, Parts, check_shared, joint, needed
from cutjax.merge.network import Network, Networks, bare, check_alike, place
from cutjax.merge.own import evaluate
from cutjax.merge.serving import check_serving
from cutjax.merge.sharing import Sharing, check
from cutjax.mirror import mirrored, path_name

SHARED, OWN, READS = "shared", "own", "reads"


class Merged(NamedTuple):
    """A merged network.

    `apply(params, *inputs) -> {task: output}`: a task per network, or per task of a
    network that has several. `params[collection]["shared"]` are the channels that all
    read, `["own"][network]` those of one network, `["reads"][network]` the part of its
    kernels from the shared channels to its own.
    """

    apply: Callable[..., dict[str, Any]]
    params: dict[str, Any]


def average(
    networks: Networks, sharing: Sharing, inputs: Sequence[Any] | Any
) -> Merged:
    """One network whose channels are shared as told, with averaged parameters.

    Any subset of the tasks (`select`, or `cut(..., tasks=...)`) runs the shared
    channels and those of its own networks, nothing else. What is shared reads only what
    is shared: what the networks' own channels fed into it is gone, so train afterwards
    (or see `least_squares`), unless everything up to there is shared. Weights are
    averaged as they are: of two copies of which a relu hides that channels are scaled,
    `align` finds which correspond, but nothing undoes the scales.

    Args:
        networks: by name, alike.
        sharing: for each group and network, where its channels go; see
            `Sharing`, and `from_permutations` for those that `align_all` finds.
        inputs: one batch of inputs, or its shapes.

    Returns:
        The function and its parameters.

    Raises:
        MismatchError: the networks are not of one architecture.
        KeepError: the sharing does not fit, or cannot be, or cuts a group off: nothing
            of what its shared channels read is shared, or its own channels serve
            nothing. Where that is so of a part of a group, a warning says so.

    Example:
        >>> import jax, jax.numpy as jnp, cutjax as cj
        >>> apply = lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"]
        >>> w = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))}
        >>> x = jnp.ones((1, 2))
        >>> net = cj.merge.Network(apply, w, cj.trace(apply, w, x))
        >>> merged = cj.merge.average({"one": net, "two": net}, {}, x)
        >>> {task: y.tolist() for task, y in merged.apply(merged.params, x).items()}
        {'one': [[6.0]], 'two': [[6.0]]}
    """
    check_alike(networks)
    first = next(iter(networks.values()))
    check(first.graph, tuple(networks), sharing)
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    job = joint(networks, sharing, given)
    check_serving(job)
    params = packed(averaged(networks, job))
    return Merged(merged_apply(networks, sharing), params)


def merged_apply(networks: Networks, sharing: Sharing) -> Callable[..., dict[str, Any]]:
    """The merged function, `apply(params, *inputs) -> {task: output}`.

    Args:
        networks: by name; only their functions and graphs are used.
        sharing: of their channels.
    """
    networks = bare(networks)

    @functools.lru_cache(maxsize=4)
    def inferred(tree: Any, shapes: Any, _: Any) -> tuple[Joint, dict[str, Any]]:
        leaves = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
        like = jax.tree.unflatten(tree, leaves)
        job = joint(networks, sharing, like)
        found = {n: jax.tree.structure(_returned(v, like)) for n, v in networks.items()}
        return job, found

    def apply(params: Any, *inputs: Any) -> dict[str, Any]:
        leaves, tree = jax.tree.flatten(inputs)
        shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        traced = any(isinstance(x, Tracer) for x in jax.tree.leaves((params, inputs)))
        # Inferring takes longer than running. Kept where nothing is traced, so that
        # nothing outlives its trace, and for each of the settings that jit heeds.
        infer = inferred.__wrapped__ if traced else inferred
        job, structures = infer(tree, shapes, _settings())
        parts, found = unpacked(params, networks), {}
        with _evaluating(parts, networks):
            _, outs = evaluate(job, parts, leaves)
        for name, structure in structures.items():
            more = answers(name, jax.tree.unflatten(structure, outs[name]))
            found = together(found, more)
        return found

    return apply


def _evaluating(parts: Parts, networks: Networks) -> AbstractContextManager[None]:
    shapes = next(iter(networks.values())).graph.shapes
    each = [parts.shared, *parts.own.values(), *parts.reads.values()]
    return as_traced(*((leaves, shapes) for leaves in each))


def _settings() -> tuple[Any, ...]:
    names = ("enable_x64", "default_matmul_precision", "numpy_dtype_promotion")
    return tuple(getattr(jax.config, f"jax_{name}") for name in names)


def train_apply(
    networks: Networks, sharing: Sharing
) -> Callable[..., tuple[dict[str, Any], dict[str, Any]]]:
    """The merged function in train mode, for `recalibrate` and for training.

    Args:
        networks: by name; here `apply` is `train_apply(params, *inputs) -> (outputs,
            updates)`, where updates mirror parameters, such as new running statistics.
        sharing: of their channels.

    Returns:
        `train_apply(params, *inputs) -> ({task: output}, updates)` of the merged
        parameters; the statistics of shared channels are one for all.
    """

    networks = bare(networks)

    def apply(params: Any, *inputs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        job, parts = joint(networks, sharing, inputs), unpacked(params, networks)
        first = next(iter(networks.values()))
        updated = mirrors(first, inputs)
        # Channels that nothing reads are gone, and so are their statistics.
        gone = {
            name: {i for i, path in updated.items() if path not in own}
            for name, own in parts.own.items()
        }
        job, outvars = job.without(gone), job.shared.frame.jaxpr.outvars
        held = {i: path for i, path in updated.items() if path in parts.shared}
        more = needed(job.shared, [outvars[i] for i in held])
        job = job._replace(trunk=sorted({*job.trunk, *more}))
        check_shared(job)
        leaves = jax.tree.leaves(inputs)
        with _evaluating(parts, networks):
            shared, outs = evaluate(job, parts, leaves)
        found: dict[str, Any] = {}
        for name, net in networks.items():
            found = together(found, answers(name, restored(net, inputs, outs[name])[0]))
            for i, path in updated.items():
                if path in parts.own[name]:
                    parts.own[name][path] = outs[name][i]  # type: ignore[index]
        new = {path: shared[outvars[i]] for i, path in held.items()}
        tree = packed(parts._replace(shared={**parts.shared, **new}))
        changed = {path.partition("/")[0] for path in updated.values()}
        return found, {name: tree[name] for name in changed if name in tree}

    return apply


def mirrors(net: Network, inputs: Sequence[Any]) -> dict[int, str]:
    """Which flat outputs are new values of which parameters: of the updates only."""
    shapes = {path: s.shape for path, s in net.graph.shapes.items()}
    found = jax.tree_util.tree_flatten_with_path(_returned(net, inputs))[0]
    # What comes first are the answers, whatever their names and shapes.
    named = [
        mirrored(path_name(path), leaf.shape, shapes) if path[0].idx else None
        for path, leaf in found
    ]
    return {i: path for i, path in enumerate(named) if path is not None}


def restored(net: Network, inputs: Sequence[Any], flat: Sequence[Any]) -> Any:
    """Flat outputs in the structure that a network's function returns."""
    return jax.tree.unflatten(jax.tree.structure(_returned(net, inputs)), flat)


def _returned(net: Network, inputs: Sequence[Any]) -> Any:
    """The shapes of what a network's function returns."""
    shapes = jax.tree.unflatten(net.graph.treedef, list(net.graph.shapes.values()))
    return jax.eval_shape(net.apply, shapes, *inputs)


def answers(name: str, out: Any) -> dict[str, Any]:
    """The tasks of a network's output: its name, with the task if it has several."""
    if not isinstance(out, Mapping):
        return {name: out}
    if len(out) == 1:
        return {name: next(iter(out.values()))}
    return {f"{name}/{task}": value for task, value in out.items()}


def together(found: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The answers of several networks.

    Raises:
        MismatchError: two of them would have one name.
    """
    if both := found.keys() & more.keys():
        raise MismatchError(
            f"two networks answer {min(both)!r}: a task of several is called "
            "network/task; give the networks other names"
        )
    return found | more


def packed(parts: Parts) -> dict[str, Any]:
    """Merged parameters as a pytree of collections."""
    tree: dict[str, Any] = {}

    def put(side: str, name: str | None, leaves: Mapping[str, Any]) -> None:
        for path, leaf in leaves.items():
            collection, key = place(path)
            at = tree.setdefault(collection, {}).setdefault(side, {})
            if name is not None:
                at = at.setdefault(name, {})
            at[key] = leaf

    put(SHARED, None, parts.shared)
    for side, found in ((OWN, parts.own), (READS, parts.reads)):
        for name, leaves in found.items():
            put(side, name, leaves)
    return tree


def unpacked(params: Mapping[str, Any], networks: Networks) -> Parts:
    """The parts of merged parameters; what is not there is left out."""
    first = next(iter(networks.values()))

    def get(side: str, name: str | None) -> dict[str, Any]:
        found = {}
        for path in first.graph.shapes:
            collection, key = place(path)
            at = params.get(collection, {}).get(side, {})
            at = at if name is None else at.get(name, {})
            if key in at:
                found[path] = at[key]
        return found

    return Parts(
        get(SHARED, None),
        {name: get(OWN, name) for name in networks},
        {name: get(READS, name) for name in networks},
    )
