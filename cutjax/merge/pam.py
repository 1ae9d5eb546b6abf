"""Pruning-Aware Merging in one call, and the groups that pruning after it spares."""

from collections.abc import Iterable, Mapping
from typing import Any

from cutjax.errors import DataError, KeepError, suggest
from cutjax.graph import Graph
from cutjax.inputs import batches_of, inputs_of
from cutjax.merge.align import align_all
from cutjax.merge.evidence import by_scores
from cutjax.merge.network import Networks, check_alike
from cutjax.merge.regroup import Regrouped, pam_sharing, regroup
from cutjax.merge.sharing import Sharing
from cutjax.merge.whole import whole_groups
from cutjax.saliency.criterion import Scores


def pam(
    networks: Networks,
    scores: Mapping[str, Scores],
    batches: Iterable[Any] | None = None,
    *,
    alpha: float | None = None,
    shared: float | Mapping[str, int] | None = None,
    exclusive: float | Mapping[str, int] | None = None,
    progress: bool = True,
) -> tuple[Sharing, Regrouped]:
    """Which channels all tasks share, which are exclusive to one, which go.

    Channels are aligned, then typed by each network's scores; groups that must be
    shared whole (`whole_groups`) are, and do not count. What is shared no longer reads
    what is exclusive, so fit the merged network (`least_squares`) and train it to
    answer as the networks did (`finetune`), then cut it like any other.

    Args:
        networks: by name, one per task.
        scores: of each network by its own task: `{name: saliency(...)[task]}`.
        batches: `(x, ...)` or bare inputs, to align by activations; without them
            channels are aligned by weights, and what must be shared whole is not known
            (merging says so).
        alpha: one of the three that `regroup` takes.
        shared: another.
        exclusive: the third.
        progress: show a progress bar.

    Returns:
        `(sharing, info)` for `average`, `mtz` and `least_squares`.

    Raises:
        MismatchError: the networks are not of one architecture.
        DataError: scores that are negative, not finite or missing; no batch.
        KeepError: not one of the three; more channels than there are; a group that
            must be shared whole, or nothing but such.
        BudgetError: no alpha gives so many.

    Example:
        >>> import jax.numpy as jnp, numpy as np, cutjax as cj
        >>> apply = lambda w, x: x @ w["a"] @ w["b"]
        >>> one = {"a": jnp.array([[1.0, 2.0, 3.0]]), "b": jnp.array([[4.0], [5], [6]])}
        >>> two = {k: v[..., ::-1] if k == "a" else v[::-1] for k, v in one.items()}
        >>> graph = cj.trace(apply, one, jnp.ones((1, 1)))
        >>> net = cj.merge.Network(apply, one, graph)
        >>> nets = {"p": net, "q": net._replace(params=two)}
        >>> first, last = np.array([9.0, 8, 1]), np.array([9.0, 1, 8])
        >>> scores = {"p": {"a:1": first}, "q": {"a:1": last}}
        >>> sharing, info = pam(nets, scores, alpha=0.2, progress=False)
        >>> {name: slots.tolist() for name, slots in sharing["a:1"].items()}
        {'p': [0, -1, -2], 'q': [-1, -2, 0]}

    Reference:
        He et al., Pruning-Aware Merging, KDD 2021, section 4; there channels are not
        aligned.
    """
    check_alike(networks)
    for name in networks:
        if name not in scores:
            raise DataError(f"no scores of {name!r}; {suggest(name, scores)}")
    first = next(iter(networks.values()))
    graph, data = first.graph, None if batches is None else list(batches_of(batches))
    whole = whole_groups(first, inputs_of(data[0], graph.inputs)) if data else {}
    given = {"alpha": alpha, "shared": shared, "exclusive": exclusive}
    _check_whole(graph, whole, given.values())
    orders, _ = align_all(
        graph,
        {name: net.params for name, net in networks.items()},
        apply=None if batches is None else {n: v.apply for n, v in networks.items()},
        batches=data,
        progress=progress,
    )
    levels = by_scores({name: scores[name] for name in networks}, orders)
    levels = {group: found for group, found in levels.items() if group not in whole}
    types, info = regroup(levels, list(networks), **given)
    return pam_sharing(graph, list(networks), orders, types), info


def _check_whole(graph: Graph, whole: Mapping[str, str], wanted: Iterable[Any]) -> None:
    """Check that something can be shared in part, and what was asked for by name."""
    for name in (n for one in wanted if isinstance(one, Mapping) for n in one):
        if name in whole:
            raise KeepError(f"{name!r} cannot be shared in part: {whole[name]}")
    if whole and len(whole) == len(graph.free):
        name, why = next(iter(whole.items()))
        raise KeepError(
            f"no group of these networks can be shared in part; {name!r}: {why}\n"
            "  try: share all of some groups and none of the others, see "
            "`cutjax.merge.until`; or all (`from_permutations`)"
        )


def exclusive_groups(graph: Graph) -> list[str]:
    """The groups that serve one task only: pruning of what is shared spares them.

    Args:
        graph: of a merged network.

    Returns:
        Names of free groups: for `plan(..., pin=...)`, and to be charged nothing where
        gates are trained (`weigh` with costs of zero).

    Example:
        >>> import jax.numpy as jnp, cutjax as cj
        >>> def apply(w, x):
        ...     h = x @ w["a"]
        ...     return {"p": h @ w["b"], "q": h @ w["c"] @ w["d"]}
        >>> w = {k: jnp.ones((2, 2)) for k in "abcd"}
        >>> exclusive_groups(cj.trace(apply, w, jnp.ones((1, 2))))
        ['c:1']

    Reference:
        He et al., Pruning-Aware Merging, KDD 2021, section 5: no KL on exclusive gates.
    """
    return [group.name for group in graph.free if len(group.tasks) == 1]
