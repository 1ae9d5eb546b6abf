"""A merged network on disk, and back.

The checkpoint holds the merged parameters, and in its metadata what the merged function
is made of: the sharing, the graph of each network, and where the network came from. The
code of the networks is not stored: loading asks for their functions again.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cutjax import checkpoint
from cutjax.cli.options import job_of
from cutjax.errors import CheckpointError
from cutjax.graph import Graph
from cutjax.graph_json import graph_from_json, graph_to_json, struct_from_text
from cutjax.merge import Merged, Network, Sharing
from cutjax.merge.merged import merged_apply
from cutjax.trace import trace

_KEY = "merge"


def by_network(merged: Merged, names: Sequence[str]) -> Callable[..., dict[str, Any]]:
    """The merged function answering by network, `{network: {task: output}}`.

    Args:
        merged: whose answers are called as the networks, or `network/task`.
        names: the networks, without slashes.

    Returns:
        A function of the same arguments; the networks are its tasks when it is traced.
    """

    def apply(params: Any, *inputs: Any) -> dict[str, Any]:
        found: dict[str, Any] = {name: {} for name in names}
        for task, value in merged.apply(params, *inputs).items():
            found[task.partition("/")[0]][task] = value
        return found

    return apply


def save(
    folder: Path,
    merged: Merged,
    networks: Mapping[str, Network],
    sharing: Sharing,
    *,
    models: Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Keep a merged network in `folder/model`.

    Args:
        folder: where.
        merged: its parameters are stored.
        networks: what it was made of: their graphs are stored.
        sharing: of their channels.
        models: where each network is found again, see `job_of`.
        provenance: anything that JSON holds.

    Raises:
        CheckpointError: it cannot be written.
    """
    graphs = list({id(net.graph): net.graph for net in networks.values()}.values())
    which = [[name, _place(graphs, net.graph)] for name, net in networks.items()]
    inputs = tuple(map(struct_from_text, graphs[0].inputs))
    stored = {
        "graphs": [graph_to_json(graph) for graph in graphs],
        "networks": which,
        "models": dict(models or {}),
        "sharing": {
            group: {name: np.asarray(slots).tolist() for name, slots in found.items()}
            for group, found in sharing.items()
        },
    }
    checkpoint.save(
        folder / "model",
        merged.params,
        graph=trace(by_network(merged, tuple(networks)), merged.params, *inputs),
        keep={},
        provenance={**(provenance or {}), _KEY: stored},
    )


def _place(graphs: Sequence[Graph], graph: Graph) -> int:
    return next(i for i, other in enumerate(graphs) if other is graph)


def load(
    folder: str | Path,
    applies: Mapping[str, Callable[..., Any]] | None = None,
    *,
    like: Any = None,
) -> Merged:
    """The merged network that `cutjax merge` wrote.

    Args:
        folder: its `--out`.
        applies: the networks' functions by name, of the same code; those that the
            command was given are found again, if not given.
        like: parameters of one of the networks, or their shapes, where their containers
            are others than dicts, lists and tuples.

    Returns:
        The function and its parameters.

    Raises:
        CheckpointError: it is missing, damaged, no merged network, of other code, or
            needs `like`.
        SourceError: a function that the command was given is no longer there.

    Example:
        >>> import tempfile, jax.numpy as jnp, cutjax as cj
        >>> from cutjax.cli import bundle
        >>> apply = lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"]
        >>> w, x = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))}, jnp.ones((1, 2))
        >>> net = cj.merge.Network(apply, w, cj.trace(apply, w, x))
        >>> nets = {"one": net, "two": net}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     bundle.save(Path(folder), cj.merge.average(nets, {}, x), nets, {})
        ...     merged = bundle.load(folder, {"one": apply, "two": apply})
        >>> merged.apply(merged.params, x)["two"].tolist()
        [[6.0]]
    """
    place = Path(folder) / "model"
    stored = checkpoint.read(place).provenance.get(_KEY)
    if stored is None:
        raise CheckpointError(
            f"{folder} holds no merged network; make one with `cutjax merge one=... "
            f"two=... --out {folder}`, or load this by cutjax.load"
        )
    if applies is None:
        jobs = {name: job_of(name, model) for name, model in stored["models"].items()}
        applies = {name: job.apply for name, job in jobs.items()}
        like = (
            like if like is not None or not jobs else next(iter(jobs.values())).params
        )
    merged = _function(folder, stored, applies, like)
    names = [name for name, _ in stored["networks"]]
    _, params, _ = checkpoint.load(place, by_network(merged, names))
    return merged._replace(params=params)


def _function(
    folder: str | Path,
    stored: Mapping[str, Any],
    applies: Mapping[str, Callable[..., Any]],
    like: Any,
) -> Merged:
    names = [name for name, _ in stored["networks"]]
    if missing := [name for name in names if name not in applies]:
        call = ", ".join(f"{name!r}: apply_{name}" for name in names)
        raise CheckpointError(
            f"{folder} is made of {names}, and no function of {missing[0]!r} is given; "
            f"call load({str(folder)!r}, {{{call}}})"
        )
    treedef = None if like is None else jax.tree.structure(like)
    graphs = [graph_from_json(graph, treedef) for graph in stored["graphs"]]
    if any(graph.treedef is None for graph in graphs):
        raise CheckpointError(
            f"the networks in {folder} hold their parameters in other containers than "
            f"dicts, lists and tuples; call load({str(folder)!r}, ..., like=params)"
        )
    networks = {
        name: Network(applies[name], None, graphs[i]) for name, i in stored["networks"]
    }
    sharing = {
        group: {name: np.asarray(slots, int) for name, slots in found.items()}
        for group, found in stored["sharing"].items()
    }
    return Merged(merged_apply(networks, sharing), {})
