"""What `cutjax merge` does: load, compare channels, share them, make the kernels."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

import cutjax.merge as merging
from cutjax.cli.options import Settings
from cutjax.errors import KeepError, MismatchError, suggest, warn
from cutjax.graph import Graph
from cutjax.merge import Merged, Network, Sharing
from cutjax.merge.network import check_alike, check_answers
from cutjax.recover import recalibrate
from cutjax.source import Job, SourceError, graph_of

BATCH, LEAST = 128, 4


class Made(NamedTuple):
    """The merged network, what it is made of, and the seconds of each step."""

    merged: Merged
    networks: dict[str, Network]
    sharing: Sharing
    seconds: dict[str, float]


def merge(jobs: Mapping[str, Job], s: Settings) -> Made:
    """Makes one network.

    Args:
        jobs: the networks and their data, by name.
        s: the settings.

    Returns:
        The merged network; not measured yet.

    Raises:
        MismatchError: other architectures or inputs.
        KeepError: groups that are unknown, or cannot be shared.
        SourceError: statistics that cannot be made anew.
    """
    clock = [time.perf_counter()]
    networks = networks_of(jobs)
    _check_statistics(jobs, s)
    data = calibration(jobs, s)
    sharing = sharing_of(networks, data, s)
    clock.append(time.perf_counter())
    merged = _kernels(networks, jobs, sharing, data, s)
    clock.append(time.perf_counter())
    compared, fitted = np.diff(clock).round(3).tolist()
    seconds = {"compare and share": compared, "make kernels": fitted}
    return Made(merged, networks, sharing, seconds)


def networks_of(jobs: Mapping[str, Job]) -> dict[str, Network]:
    """The networks with their graphs, checked to be alike.

    Raises:
        MismatchError: other architectures or inputs, inputs that are no one array, or
            another number of tasks.
    """
    found: dict[str, Network] = {}
    first, *others = jobs
    for name, job in jobs.items():
        if not hasattr(x := job.dataset.calibration.x, "shape"):
            raise MismatchError(
                f"the inputs of network {name!r} are a {type(x).__name__}, but the "
                "command merges networks of one array; in Python cutjax.merge takes any"
            )
    shape = jobs[first].dataset.calibration.x.shape[1:]
    for name in others:
        other = jobs[name].dataset.calibration.x.shape[1:]
        if other != shape:
            raise MismatchError(
                f"networks {first!r} and {name!r} take inputs of other shapes: "
                f"{list(shape)} against {list(other)}"
            )
    for name, job in jobs.items():
        graph = graph_of(job.apply, job.params, job.dataset)
        # Networks of one function and one graph are traced once.
        graph = next((n.graph for n in found.values() if n.graph == graph), graph)
        found[name] = Network(job.apply, job.params, graph)
    check_alike(found)
    check_answers(found)
    return found


def _check_statistics(jobs: Mapping[str, Job], s: Settings) -> None:
    for name, job in jobs.items():
        held = isinstance(job.params, Mapping) and "batch_stats" in job.params
        if held and job.train_apply is None and s.method != "least-squares":
            raise SourceError(
                f"the params of {name!r} hold 'batch_stats', which --method {s.method} "
                "makes anew, but its train_apply is None; give a train_apply, such as "
                "cutjax.models.train_apply(model), or --method least-squares"
            )


def calibration(
    jobs: Mapping[str, Job], s: Settings
) -> list[Float[np.ndarray, "b h w c"]]:
    """Equal batches of examples of all networks alike, mixed, drawn by the seed.

    So many that some can judge a fit to the others, where there are enough examples.
    """
    rng = np.random.default_rng(s.seed)
    each = -(-s.calibration // len(jobs))
    given = {name: job.dataset.calibration.x for name, job in jobs.items()}
    few = {name: len(x) for name, x in given.items() if len(x) < each}
    if few:
        said = ", ".join(f"{name!r} has {number}" for name, number in few.items())
        warn(
            f"--calibration {s.calibration} is {each} examples of each network, but "
            f"{said}: the others count more"
        )
    parts = [x[rng.permutation(len(x))[:each]] for x in given.values()]
    x = rng.permutation(np.concatenate(parts))
    number = max(-(-len(x) // BATCH), min(LEAST, len(x)))
    size = len(x) // number
    return [x[i * size : (i + 1) * size] for i in range(number)]


def sharing_of(
    networks: Mapping[str, Network], data: list[Any], s: Settings
) -> Sharing:
    """Which channels of the chosen groups go together.

    Raises:
        KeepError: a group that is unknown, or cannot be shared.
    """
    names, graph = list(networks), next(iter(networks.values())).graph
    shared = _shared(graph, s.layers)
    params = {name: net.params for name, net in networks.items()}
    applies = {name: net.apply for name, net in networks.items()}
    if s.share == "zip":
        known = merging.correlations(applies, graph, params, data, progress=s.progress)
        return merging.zipit(graph, known, names, shared=shared)[0]
    orders: Mapping[str, Any] = {name: {} for name in names}
    if s.share == "permute":
        by = {"apply": applies, "batches": data} if s.align == "activations" else {}
        orders, _ = merging.align_all(graph, params, **by, progress=s.progress)
    found = merging.from_permutations(graph, orders)
    return merging.until(graph, names, found, shared)


def _shared(graph: Graph, layers: str) -> list[str]:
    """The names of the groups that are shared."""
    free = [group.name for group in graph.free]
    if not free:
        raise KeepError("these networks have no channels to share: all are pinned")
    if layers == "all":
        return free
    if layers.isdigit():
        if not 1 <= int(layers) <= len(free):
            raise KeepError(f"--layers {layers}: a number from 1 to {len(free)}")
        return free[: int(layers)]
    return [_group(graph, layers, word) for word in map(str.strip, layers.split(","))]


def _group(graph: Graph, layers: str, word: str) -> str:
    names = [group.name for group in graph.groups]
    fits = [name for name in names if name == word]
    fits = fits or [name for name in names if name.endswith(f"/{word}")]
    if len(fits) != 1:
        known = fits or [group.name for group in graph.free]
        raise KeepError(
            f"--layers {layers}: {'several groups end in' if fits else 'no group'} "
            f"{word!r}; {suggest(word, known)}; or give all, or a number"
        )
    pinned = graph[fits[0]].pinned
    if pinned is not None:
        raise KeepError(f"--layers {layers}: {fits[0]!r} is pinned: {pinned}")
    return fits[0]


def _kernels(
    networks: Mapping[str, Network],
    jobs: Mapping[str, Job],
    sharing: Sharing,
    data: list[Any],
    s: Settings,
) -> Merged:
    """The merged parameters; means of them need new statistics of normalisation."""
    if s.method == "average":
        merged = merging.average(networks, sharing, data[0])
    else:
        fit = merging.mtz if s.method == "mtz" else merging.least_squares
        given = networks, sharing, data
        merged = fit(*given, damping=s.damping, progress=s.progress)
    if s.method == "least-squares" or not all(map(_updates, jobs.values())):
        return merged
    trains = {n: net._replace(apply=jobs[n].train_apply) for n, net in networks.items()}
    train = merging.train_apply(trains, sharing)
    new = recalibrate(train, merged.params, data, progress=s.progress)
    return merged._replace(params=new)


def _updates(job: Job) -> bool:
    """Whether training changes anything but by gradients: running statistics."""
    if job.train_apply is None:
        return False
    x = job.dataset.calibration.x[:1]
    return bool(jax.tree.leaves(jax.eval_shape(job.train_apply, job.params, x)[1]))
