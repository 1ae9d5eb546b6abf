"""Which channels of networks correspond: one permutation per group."""

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from cutjax.errors import DataError, KeepError, MismatchError, suggest
from cutjax.given import check_by_name, said, several
from cutjax.graph import Graph
from cutjax.merge.assign import Assign, hungarian, sinkhorn
from cutjax.merge.correlation import Apply, gathered
from cutjax.merge.idle import among_idle, idle_channels
from cutjax.merge.match import Alignment, Orders, in_turn, matched
from cutjax.merge.network import Network
from cutjax.merge.sides import Side, by_activations, by_weights
from cutjax.merge.structure import check_structure, free_names
from cutjax.merge.terms import identity


def align(
    graph: Graph,
    params_a: Any,
    params_b: Any,
    *,
    apply: Apply | tuple[Apply, Apply] | None = None,
    batches: Iterable[Any] | None = None,
    method: str = "hungarian",
    temperature: float = 0.01,
    fixed: Collection[str] | str = (),
    seed: int = 0,
    progress: bool = True,
) -> tuple[Orders, Alignment]:
    """Match the channels of one network with those of another.

    By weights, if no data is given: coordinate ascent on the sum of products of all
    parameters. The first sweep goes from the known to the unknown: it compares what
    does not depend on orders not found yet, so that a reordered copy is found whole.
    Where an axis is several groups (the channels of GroupNorm's groups, heads and their
    widths), one order within holds for all of what is outside.
    With data, by correlation of activations where channels are read; groups that are
    not read outside of loops are matched by weights, given the others, and so are among
    themselves the channels that never move on the data. Channels that constants tell
    apart (`Group.ordered`) correspond as they stand. Where a relu hides that channels
    are scaled, they are found; nothing undoes the scales. Recurrences are often better
    matched by weights: what correlates over time may average worse than as it stands.

    Args:
        graph: of both.
        params_a: stays as it is.
        params_b: is to be reordered. Where it holds no free channel its parameters may
            have other sizes: heads of other classes.
        apply: the function, or a pair of them where heads differ.
        batches: `(x, ...)` or bare inputs; `x` is the input, or a tuple of inputs.
        method: `"hungarian"`, or `"sinkhorn"`: soft assignments, made hard.
        temperature: of soft assignments, in units of the largest similarity.
        fixed: groups to leave in place as well.
        seed: of the order in which groups are visited.
        progress: show a progress bar.

    Returns:
        `(permutation, info)`: channel `i` of group `g` in A corresponds to channel
        `permutation[g][i]` in B; `permute(params_b, graph, permutation)` matches A.

    Raises:
        MismatchError: another architecture; names the first difference. Inputs that
            the function does not take.
        DataError: no batch, or an activation or a weight that is NaN or infinite.
        KeepError: an unknown group or method, a temperature that is not above 0, a
            seed below 0, or another number of functions than one or two.

    Example:
        >>> import jax.numpy as jnp, numpy as np, cutjax as cj
        >>> from cutjax.merge.align import align
        >>> apply = lambda w, x: x @ w["a"] @ w["b"]
        >>> a = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[3.0], [4.0]])}
        >>> b = {"a": jnp.array([[2.1, 1.0]]), "b": jnp.array([[4.0], [2.9]])}
        >>> graph = cj.trace(apply, a, jnp.ones((1, 1)))
        >>> permutation, info = align(graph, a, b)
        >>> permutation["a:1"].tolist(), round(info.after["a:1"], 2)
        ([1, 0], 1.0)

    Reference:
        Ainsworth et al., Git Re-Basin, ICLR 2023; for activations Li et al., Convergent
        Learning, 2015.
    """
    pair = apply if isinstance(apply, tuple) else (apply, apply)
    if len(pair) != 2:
        raise KeepError(f"apply is {said(apply)}; pass one function, or a pair (a, b)")
    networks = {"a": params_a, "b": params_b}
    found, info = align_all(
        graph,
        networks,
        apply=None if apply is None else dict(zip(networks, pair, strict=True)),  # type: ignore[arg-type]
        batches=batches,
        method=method,
        temperature=temperature,
        fixed=fixed,
        seed=seed,
        progress=progress,
    )
    return found["b"], info["b"]


def align_all(
    graph: Graph,
    networks: Mapping[str, Any],
    *,
    reference: str | None = None,
    together: bool = False,
    apply: Apply | Mapping[str, Apply] | None = None,
    batches: Iterable[Any] | None = None,
    method: str = "hungarian",
    temperature: float = 0.01,
    fixed: Collection[str] | str = (),
    seed: int = 0,
    progress: bool = True,
) -> tuple[dict[str, Orders], dict[str, Alignment]]:
    """Match the channels of any number of networks with those of one of them.

    Args:
        graph: of all.
        networks: parameters by name.
        reference: the one that stays as it is; the first, if not given.
        together: afterwards align each to the mean of all others as they are permuted
            by then, until none changes. All count alike then, and going from one
            network to another by way of any third leads to the same channels.
        apply: the function, or one per network where heads differ.
        batches: see `align`; they are read once.
        method: see `align`.
        temperature: see `align`.
        fixed: see `align`.
        seed: see `align`.
        progress: see `align`.

    Returns:
        `(permutations, infos)` by name; that of the reference changes nothing.
        `before` and `after` of each are against the reference, or, together, against
        the mean of the others.

    Raises:
        MismatchError: other architectures; names the first difference. No networks, or
            networks that are not by name.
        DataError: no batch, or an activation or a weight that is NaN or infinite.
        KeepError: an unknown network, group or method, or a network without a
            function; see `align`.
    """
    check_by_name(networks, "networks", "{name: params, ...}")
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise KeepError(f"seed={seed}: give a whole number, 0 or more")
    names = list(networks)
    first = reference if reference is not None else names[0]
    if first not in networks:
        raise KeepError(f"no network {first!r}; {suggest(first, names)}")
    for name, params in networks.items():
        if isinstance(params, Network):
            raise MismatchError(
                f"networks[{name!r}] is a Network; pass {{name: network.params, ...}}"
            )
        check_structure(params, graph, f"network {name!r}")
    stay = {graph[name].name for name in several(fixed)}
    stay |= {group.name for group in graph.groups if group.ordered is not None}
    free = free_names(graph) - stay
    assign = _assign(method, temperature)
    sides = _sides(graph, networks, apply, batches, free, progress)
    start: dict[str, Orders] = {name: {} for name in names}
    start[first] = identity({g.name: g.size for g in graph.free})
    infos: dict[str, Alignment] = {}
    for name in names:
        if name != first:
            objectives = [side([first], name, start) for side in sides]
            start[name], infos[name] = matched(graph, objectives, {}, assign, seed)
    if together and len(names) > 1:
        return in_turn(graph, sides, start, first, assign, seed)
    infos[first] = Alignment({}, {}, 0, {})
    return {n: start[n] for n in names}, {n: infos[n] for n in names}


def _assign(method: str, temperature: float) -> Assign:
    known: dict[str, Assign] = {
        "hungarian": hungarian,
        "sinkhorn": partial(sinkhorn, temperature=temperature),
    }
    if method not in known:
        raise KeepError(f"no method {method!r}; {suggest(method, known)}")
    if method == "sinkhorn" and not 0 < temperature < float("inf"):
        raise KeepError(f"temperature={temperature}: give a number above 0")
    return known[method]


def _sides(
    graph: Graph,
    networks: Mapping[str, Any],
    apply: Apply | Mapping[str, Apply] | None,
    batches: Iterable[Any] | None,
    free: frozenset[str],
    progress: bool,
) -> list[Side]:
    """Activations first, if there is data; then weights, for what is left."""
    if (apply is None) != (batches is None):
        raise DataError("to align by activations pass both `apply` and `batches`")
    if apply is None or batches is None:
        return [by_weights(graph, networks, free, free)]
    found = gathered(apply, graph, networks, batches, grids=True, progress=progress)
    left = free - {name for unit in found for name in unit}
    sides = [by_activations(graph, found, list(networks), free)]
    if left:
        sides.append(by_weights(graph, networks, free, left))
    idle = idle_channels(found, graph, len(networks))
    return [*sides, *among_idle(graph, networks, free, idle)]
