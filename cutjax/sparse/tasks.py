"""Masks of several tasks: what is prunable, fusing, agreement, realised density."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cutjax import agreement
from cutjax.errors import BudgetError, KeepError, MismatchError
from cutjax.graph import Graph
from cutjax.mirror import named_leaves, path_name
from cutjax.shrink import needed
from cutjax.sparse.choose import topk
from cutjax.sparse.tree import Masks

STATE = ("batch_stats",)
"""Collections that hold statistics, not weights."""


def prunable(
    tree: Any,
    graph: Graph,
    *,
    tasks: Sequence[str] | str | None = None,
    state: Sequence[str] = STATE,
) -> Any:
    """The kernels of a pytree, None in place of all that is never pruned.

    Args:
        tree: parameters, gradients, scores: anything of the parameters' structure.
        graph: their graph.
        tasks: only parameters that some of these need: for one task, trunk and own
            head; all, for all tasks.
        state: collections (any key on the path) that are no weights.

    Returns:
        The tree with None for what has less than two axes, is state, or goes with other
        tasks.

    Example:
        >>> import jax, jax.numpy as jnp, cutjax as cj
        >>> w = {"a": jnp.ones((2, 3)), "b": jnp.ones(3)}
        >>> graph = cj.trace(lambda w, x: x @ w["a"] + w["b"], w, jnp.ones((1, 2)))
        >>> jax.tree.map(jnp.shape, prunable(w, graph))
        {'a': (2, 3), 'b': None}
    """
    serving = needed(graph, tasks)

    def visit(path: tuple[Any, ...], leaf: Any) -> Any:
        name = path_name(path)
        if name not in graph.shapes:
            raise MismatchError(f"{name!r} is no parameter of the graph")
        kernel = len(graph.shapes[name].shape) >= 2
        stateful = set(state) & set(name.split("/"))
        return leaf if kernel and not stateful and name in serving else None

    return jax.tree_util.tree_map_with_path(visit, tree)


class Density(NamedTuple):
    """The share of the maskable weights that stay.

    `whole`: of all. `trunk`: of those that several tasks share (None without a graph,
    or where there are none). `heads`: per task, of those that it alone uses. `leaves`:
    by path.
    """

    whole: float
    trunk: float | None
    heads: dict[str, float]
    leaves: dict[str, float]


def density(masks: Masks, graph: Graph | None = None) -> Density:
    """What stays under masks, in all, in the trunk and in each head.

    Args:
        masks: by path; what has no mask does not count.
        graph: tells trunk and heads apart.

    Returns:
        Shares that stay. Of parameters only: no memory and no time is saved by a mask.
    """
    named = {name: np.asarray(m) for name, m in named_leaves(masks).items()}

    def share(names: Sequence[str]) -> float | None:
        size = sum(named[n].size for n in names)
        return sum(int(named[n].sum()) for n in names) / size if size else None

    heads: dict[str, list[str]] = {}
    trunk: list[str] = []
    if graph is not None:
        for name in named:
            reach = graph.reach[name]
            alone = len(reach) == 1 and len(graph.tasks) > 1
            (heads.setdefault(reach[0], []) if alone else trunk).append(name)
    whole = share(list(named))
    return Density(
        whole=1.0 if whole is None else whole,
        trunk=share(trunk),
        heads={task: share(names) or 0.0 for task, names in sorted(heads.items())},
        leaves={name: share([name]) or 0.0 for name in named},
    )


def fuse_masks(masks: Mapping[str, Masks], k: int = 1) -> Masks:
    """A weight stays if `k` of the tasks that use it keep it: 1 is the union.

    Args:
        masks: per task, over its trunk and its own head; None elsewhere.
        k: votes; the number of tasks is the intersection. Where fewer than `k` tasks
            have a mask, all of them must agree: a head keeps its own.

    Returns:
        Masks of the same structure, None where no task has one.

    Raises:
        KeepError: `k` is not between 1 and the number of tasks.
        MismatchError: the tasks' masks have different structures.

    Reference:
        DiSparse (CVPR 2022), union; CUT (2504.09803), n votes.
    """
    if not 1 <= k <= len(masks):
        raise KeepError(f"k={k} of {len(masks)} tasks; k is between 1 and their number")
    none: Callable[[Any], bool] = lambda v: v is None  # noqa: E731
    structures = {jax.tree.structure(m, is_leaf=none) for m in masks.values()}
    if len(structures) > 1:
        raise MismatchError(
            "the tasks' masks differ in structure; put None where a task has no "
            "weights, as `prunable(scores, graph, tasks=task)` does"
        )

    def fuse(*votes: Any) -> Any:
        given = [v for v in votes if v is not None]
        if not given:
            return None
        total = jnp.zeros(jnp.shape(given[0]), jnp.int32)
        for vote in given:
            total = total + vote
        return total >= min(k, len(given))

    first, *rest = masks.values()
    return jax.tree.map(fuse, first, *rest, is_leaf=none)


def iou(masks: Mapping[str, Masks]) -> dict[str, float]:
    """Agreement of the tasks leaf by leaf: kept by all over kept by any.

    Args:
        masks: per task.

    Returns:
        By path, for leaves that several tasks use; 1 where none keeps anything.

    Reference:
        DiSparse (CVPR 2022), section 5: the 'watershed' layer where tasks part.
    """
    named = [named_leaves(m) for m in masks.values()]
    out = {}
    for name in dict.fromkeys(n for tree in named for n in tree):
        votes = [np.asarray(tree[name]) for tree in named if name in tree]
        if len(votes) > 1:
            out[name] = agreement.iou(votes)
    return out


class Solved(NamedTuple):
    """The density `asked` of each task alone, and the one `realised` once fused."""

    asked: float
    realised: Density


def solve_density(
    scores: Mapping[str, Any],
    graph: Graph,
    target: float,
    *,
    k: int = 1,
    choose: Callable[[Any, float], Masks] = topk,
    tolerance: float = 0.005,
) -> tuple[Masks, Solved]:
    """Masks per task, fused, whose realised density meets a target.

    A union keeps more than any task asked for, an intersection less; what is asked of
    each task is bisected until what is realised lies within the tolerance below.

    Args:
        scores: per task, a pytree over its trunk and own head (see `prunable`).
        graph: of the parameters.
        target: the share of the weights that any of these tasks may use.
        k: votes, see `fuse_masks`.
        choose: from a task's scores and density to its masks.
        tolerance: relative, below the target.

    Returns:
        `(masks, info)`.

    Raises:
        BudgetError: a target outside of 0 .. 1, or one that no common density meets
            (too few weights, or ties); says what is nearest below.
    """
    if not 0 < target <= 1:
        raise BudgetError(f"target={target!r}; a density lies above 0 and is at most 1")
    for task in scores:
        _ = graph.check_tasks(task)

    def realise(asked: float) -> tuple[Masks, Solved]:
        masks = fuse_masks({t: choose(s, asked) for t, s in scores.items()}, k)
        return masks, Solved(asked, density(masks, graph))

    low, high, best = 0.0, 1.0, realise(0.0)
    for step in range(40):
        middle = 1.0 if step == 0 else (low + high) / 2
        found = realise(middle)
        reached = found[1].realised.whole
        if reached <= target:
            low, best = middle, max(best, found, key=lambda f: f[1].realised.whole)
            if reached >= target * (1 - tolerance):
                return best
        else:
            high = middle
    raise BudgetError(
        f"no density asked of each task realises {target}: the nearest below is "
        f"{best[1].realised.whole:.4g}; widen `tolerance`, now {tolerance}"
    )
