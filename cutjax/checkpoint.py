"""A compact model on disk: `save`, `load`, and `read` for what is known about it.

The checkpoint is one of Orbax, holding the small parameters by path, and in its
metadata everything that makes the full model's code small again: the graph, the keep,
the tasks. Loading traces nothing but the model's own function, abstractly, as a check.
A digest of the metadata and a checksum per array tell damage from data; they are no
protection against somebody who means harm. A model of the same shapes that differs
inside (gelu for relu) cannot be told apart.
"""

import datetime
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cutjax import _store
from cutjax._leaves import (
    checksum,
    pack,
    plain,
    to_device,
    to_host,
    unpack,
)
from cutjax._verify import (
    check_like,
    check_model,
    check_small,
    checked_arrays,
    struct_of,
    tree_of,
)
from cutjax.cost import Cost
from cutjax.dims import Keep
from cutjax.errors import CheckpointError
from cutjax.graph import Graph
from cutjax.graph_json import (
    custom_node,
    graph_from_json,
    graph_to_json,
    inputs_from_json,
    inputs_to_json,
    struct_from_json,
    struct_from_text,
    struct_to_json,
)
from cutjax.mirror import named_leaves
from cutjax.shrink import shrink

FORMAT = 2
_KEY = "cutjax"
_LIBRARIES = ("cutjax", "jax", "jaxlib", "flax", "numpy", "orbax-checkpoint")


class Info(NamedTuple):
    """What a checkpoint says about its model.

    `tasks` are those it answers, `keep` the kept channels, `graph` that of the full
    model. `arrays` are shapes and dtypes of the small parameters. `cost` is of the
    small model, `full_cost` of the whole one. `needs_like` names the container that
    only `load(..., like=...)` can rebuild, None where all are dicts, lists and tuples;
    until it is given, `graph.treedef` is None.
    """

    tasks: tuple[str, ...]
    keep: dict[str, Any]
    graph: Graph
    arrays: dict[str, jax.ShapeDtypeStruct]
    cost: Cost
    full_cost: Cost
    needs_like: str | None
    provenance: dict[str, Any]
    versions: dict[str, str]
    created: str


def save(
    path: str | PathLike[str],
    small_params: Any,
    *,
    graph: Graph,
    keep: Keep,
    tasks: Sequence[str] | str | None = None,
    provenance: Mapping[str, Any] | None = None,
    inputs: Sequence[Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Keep a compact model in an Orbax checkpoint, with all that runs it again.

    Args:
        path: a folder that does not exist yet; its parents are made.
        small_params: from `cut` or `cut_params`, trained further or not.
        graph: what `cut` was given.
        keep: what `cut` was given.
        tasks: what `cut` was given.
        provenance: anything that JSON holds: data, seeds, metrics, commit.
        inputs: arrays or shapes of one call, `apply(params, *inputs)`; needed only if
            an input is itself a container. Otherwise those of `trace` are used.
        overwrite: replace a checkpoint that is there; it is deleted only when the new
            one is complete.

    Raises:
        CheckpointError: the path is taken or cannot be written, or something given
            cannot be stored.
        KeepError: the keep or a task does not fit the graph.
        MismatchError: the parameters are not those of this keep and these tasks.
    """
    target = _store.place(path, overwrite)
    graph.check_keep(keep, tasks)
    chosen = None if tasks is None else graph.check_tasks(tasks)
    reduced = check_small(small_params, graph, keep, chosen)
    named = named_leaves(small_params)
    arrays = {name: to_host(name, leaf) for name, leaf in named.items()}
    body = {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
        "provenance": plain(provenance),
        "tasks": None if chosen is None else list(chosen),
        "keep": {name: pack(np.asarray(mask)) for name, mask in sorted(keep.items())},
        "reduced": reduced,
        "arrays": [
            [name, struct_to_json(struct_of(leaf)), checksum(arrays[name])]
            for name, leaf in named.items()
        ],
        "inputs": _inputs(graph, inputs),
        "graph": graph_to_json(graph),
    }
    _store.write(target, arrays, {_KEY: {"digest": _digest(body), **body}})


def load(
    path: str | PathLike[str],
    apply: Callable[..., Any],
    *,
    like: Any = None,
    inputs: Sequence[Any] | None = None,
) -> tuple[Callable[..., Any], Any, Info]:
    """The compact model of a checkpoint.

    Args:
        path: what `save` was given.
        apply: the full model's function, of the same code as that which was cut.
        like: full-size parameters, or their shapes, if their containers are others
            than dicts, lists and tuples; `read(path).needs_like` tells.
        inputs: other inputs than the stored ones, to check `apply` with.

    Returns:
        `(small_apply, small_params, info)`, the first two as `cut` returned them.

    Raises:
        CheckpointError: the checkpoint is missing, foreign, damaged or too new, needs
            `like`, or `apply` is another model.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from cutjax import cut, trace
        >>> def apply(p, x):
        ...     return {"y": jax.nn.relu(x @ p["w1"]) @ p["w2"]}
        >>> params = {"w1": jnp.ones((3, 8)), "w2": jnp.ones((8, 2))}
        >>> graph = trace(apply, params, jnp.ones((1, 3)))
        >>> keep = {"w1:1": np.arange(8) < 2}
        >>> _, small_params = cut(apply, params, graph, keep)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/small", small_params, graph=graph, keep=keep)
        ...     small_apply, small_params, info = load(f"{folder}/small", apply)
        >>> small_apply(small_params, jnp.ones((1, 3)))["y"].tolist(), info.cost.params
        ([[6.0, 6.0]], 10)
    """
    source, body = _body(path)
    info = _info(source, body, like)
    if info.graph.treedef is None:
        raise CheckpointError(
            f"{source} holds parameters in a {info.needs_like}; bring the tree: "
            "load(path, apply, like=params), full-size arrays or their shapes, "
            "such as jax.eval_shape(init, key)"
        )
    arrays = checked_arrays(source, body["arrays"], info.graph, info.keep)
    values = {name: to_device(v, info.arrays[name]) for name, v in arrays.items()}
    small_params = tree_of(info.graph, values, body["reduced"])
    chosen = None if body["tasks"] is None else info.tasks
    small_apply = shrink(apply, info.graph, info.keep, chosen)
    given = inputs_from_json(body["inputs"]) if inputs is None else tuple(inputs)
    check_model(source, small_apply, small_params, given, info.tasks)
    return small_apply, small_params, info


def read(path: str | PathLike[str]) -> Info:
    """What a checkpoint says about its model, without reading the parameters.

    Args:
        path: what `save` was given.

    Returns:
        Tasks, keep, graph, cost, provenance, versions and date.

    Raises:
        CheckpointError: the checkpoint is missing, foreign, damaged or too new.
    """
    return _info(*_body(path), None)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _inputs(graph: Graph, inputs: Sequence[Any] | None) -> Any:
    if inputs is None:
        return inputs_to_json(tuple(map(struct_from_text, graph.inputs)))
    try:
        return inputs_to_json(tuple(inputs))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"these inputs cannot be stored: {error}; leave them out of save, and pass "
            "them to load(path, apply, inputs=...)"
        ) from error


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _body(path: str | PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """The metadata that `save` wrote, whole and of a format that is known here."""
    source, body = _store.read_metadata(path, _KEY)
    digest, version = body.pop("digest", None), body.get("format")
    if isinstance(version, int) and version > FORMAT:
        by = dict(body.get("versions") or {}).get("cutjax", "a newer one")
        raise CheckpointError(
            f"{source} has format {version}, this cutjax reads up to {FORMAT}; it was "
            f"saved by cutjax {by}: pip install -U cutjax"
        )
    if digest != _digest(body):
        raise _store.damaged(source, "its metadata was changed after it was saved")
    return source, body


def _info(source: Path, body: Mapping[str, Any], like: Any) -> Info:
    try:
        stored = body["graph"]
        check_like(source, stored, like)
        treedef = None if like is None else jax.tree.structure(like)
        graph = graph_from_json(stored, treedef)
        keep = {name: unpack(bits) for name, bits in body["keep"].items()}
        tasks = graph.check_tasks(body["tasks"])
        graph.check_keep(keep, tasks)
        return Info(
            tasks=tasks,
            keep=keep,
            graph=graph,
            arrays={n: struct_from_json(array) for n, array, _ in body["arrays"]},
            cost=graph.cost(keep, None if body["tasks"] is None else tasks),
            full_cost=graph.cost(),
            needs_like=custom_node(stored["tree"]),
            provenance=body["provenance"],
            versions=body["versions"],
            created=body["created"],
        )
    except CheckpointError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _store.damaged(
            source, f"its metadata is not understood ({error})"
        ) from error
