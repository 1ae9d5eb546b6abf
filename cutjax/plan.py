"""`plan`: from scores per task and a budget to the channels that stay."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cutjax import fuse as fusing
from cutjax.agreement import compared
from cutjax.allocate import Allocate, greedy
from cutjax.budget import Budget
from cutjax.cost import Cost, amounts
from cutjax.errors import DataError, KeepError, suggest
from cutjax.given import check_known, check_scores, several
from cutjax.graph import Graph
from cutjax.normalize import Normalize


class Claims(NamedTuple):
    """How many channels of a group the tasks claim at its kept width.

    `alone`: per task, claimed by no other. `shared`: by several. `nobody`: by none.
    """

    alone: dict[str, int]
    shared: int
    nobody: int


class PlanInfo(NamedTuple):
    """The explanation of a plan: cost before and after, widths and claims per group.

    `dropped`: groups of which nothing is left, such as the inside of a block.
    `amounts`: per resource and scope (`params[trunk]`), what is left and what there is.
    """

    full: Cost
    cost: Cost
    widths: dict[str, tuple[int, int]]
    claims: dict[str, Claims]
    tasks: tuple[str, ...]
    dropped: tuple[str, ...]
    amounts: dict[str, tuple[int, int]]

    def __str__(self) -> str:
        head = (
            f"{self.cost.params:,} of {self.full.params:,} parameters "
            f"({self.cost.params / max(self.full.params, 1):.3f}), "
            f"{self.cost.flops:,} of {self.full.flops:,} FLOPs "
            f"({self.cost.flops / max(self.full.flops, 1):.3f})"
        )
        parts = [
            f"{key} {left:,} of {whole:,} ({left / whole:.3f})"
            for key, (left, whole) in self.amounts.items()
            if whole and key in ("params[trunk]", "params[heads]", "activations")
        ]
        lines = [head, *([", ".join(parts)] if parts else [])]
        if self.dropped:
            lines.append(f"nothing is left of {', '.join(self.dropped)}")
        width = max(map(len, self.widths), default=5)
        lines.append(
            f"{'group':<{width}}   kept / full  claimed alone | shared | nobody"
        )
        for name, (kept, full) in self.widths.items():
            c = self.claims[name]
            alone = " ".join(f"{t}:{n}" for t, n in c.alone.items())
            lines.append(
                f"{name:<{width}}  {kept:>5} / {full:<5} "
                f"{alone} | {c.shared} | {c.nobody}"
            )
        return "\n".join(lines)


def plan(
    graph: Graph,
    scores: Mapping[str, Mapping[str, np.ndarray]],
    *,
    tasks: Sequence[str] | str | None = None,
    budget: Budget,
    fuse: fusing.Fuse = fusing.mean,
    normalize: Normalize | None = None,
    allocate: Allocate = greedy,
    pin: Iterable[str] = (),
) -> tuple[dict[str, np.ndarray], PlanInfo]:
    """Choose the channels to keep.

    Args:
        graph: the graph.
        scores: per task and group, f32[n]; higher is kept.
        tasks: the tasks that the device needs; all that have scores, if not given.
        budget: what may be left, relative to the full model for these tasks.
        fuse: from the tasks' scores to one score per channel.
        normalize: from a task's scores and the graph to scores that can be compared
            between groups, before they are fused; as they are, if not given.
        allocate: from scores and budget to widths.
        pin: patterns of names of groups that stay whole this time.

    Returns:
        `(keep, info)`: a boolean vector for every free group, and the explanation. In
        each group the best channels stay; ties go to the lower index.

    Raises:
        BudgetError: the budget cannot be met.
        KeepError: unknown task, scores that do not fit the graph or are of several
            criteria, or a pattern of `pin` that matches no group.
        DataError: scores are NaN or infinite.

    Example:
        >>> import jax.numpy as jnp, cutjax as cj
        >>> apply = lambda w, x: x @ w["a"] @ w["b"]
        >>> w = {"a": jnp.ones((2, 4)), "b": jnp.ones((4, 1))}
        >>> graph = cj.trace(apply, w, jnp.ones((1, 2)))
        >>> scores = {"output": {"a:1": np.array([3.0, 1.0, 4.0, 2.0], np.float32)}}
        >>> keep, info = plan(graph, scores, budget=Budget(params=0.5))
        >>> keep["a:1"].tolist(), info.cost.params
        ([True, False, True, False], 6)
    """
    check_scores(scores)
    check_known("plan", scores)
    chosen = graph.check_tasks(tuple(scores) if tasks is None else tasks)
    used = {task: _checked(task, scores, graph) for task in chosen}
    if normalize is not None:
        used = {t: _normalized(t, normalize, used[t], graph) for t in chosen}
    fused = fuse(used)
    whole = _matching(graph, pin)
    free = {name: s for name, s in fused.items() if name not in whole}
    widths = {n: graph[n].size for n in fused} | allocate(graph, free, chosen, budget)
    keep = {name: _best(fused[name], width) for name, width in widths.items()}
    info = PlanInfo(
        full=graph.cost(tasks=chosen),
        cost=graph.cost(keep, tasks=chosen),
        widths={name: (width, graph[name].size) for name, width in widths.items()},
        claims={name: _claims(used, name, width) for name, width in widths.items()},
        tasks=chosen,
        dropped=tuple(name for name, width in widths.items() if width == 0),
        amounts=_amounts(graph, widths, chosen),
    )
    return keep, info


def _amounts(
    graph: Graph, widths: Mapping[str, int], tasks: tuple[str, ...]
) -> dict[str, tuple[int, int]]:
    left, full = amounts(graph, widths, tasks), amounts(graph, {}, tasks)
    return {key: (left[key], full[key]) for key in full}


def _matching(graph: Graph, pin: Iterable[str]) -> set[str]:
    """The free groups that stay whole."""
    names, found = [g.name for g in graph.free], set()
    for pattern in several(pin):
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise KeepError(
                f"pin={pattern!r} matches no free group; {suggest(pattern, names)}"
            )
        found.update(matched)
    return found


def _normalized(
    task: str, normalize: Normalize, scores: fusing.Scores, graph: Graph
) -> dict[str, np.ndarray]:
    given = {task: normalize(scores, graph)}
    try:
        return _checked(task, given, graph)
    except (KeepError, DataError) as error:
        raise type(error)(f"after normalize: {error}") from error


def _checked(task: str, scores, graph: Graph) -> dict[str, np.ndarray]:
    """The scores of the free groups, in the graph's order."""
    if task not in scores:
        raise KeepError(f"no scores for task {task!r}; {suggest(task, scores)}")
    given = scores[task]
    for name, values in given.items():
        if np.shape(values) != (graph[name].size,):
            raise KeepError(
                f"scores[{task!r}][{name!r}] have shape {np.shape(values)}, "
                f"not ({graph[name].size},)"
            )
        if not np.isfinite(values).all():
            raise DataError(f"scores[{task!r}][{name!r}] are NaN or infinite")
    missing = [g.name for g in graph.free if g.name not in given]
    if missing:
        raise KeepError(f"scores[{task!r}] lack the group {missing[0]!r}")
    return {g.name: np.asarray(given[g.name]) for g in graph.free}


def _best(scores: np.ndarray, width: int) -> np.ndarray:
    """A mask of the `width` highest scores; the lower index wins a tie."""
    mask = np.zeros(len(scores), bool)
    mask[np.argsort(-np.asarray(scores, np.float64), kind="stable")[:width]] = True
    return mask


def _claims(
    scores: Mapping[str, Mapping[str, np.ndarray]], name: str, width: int
) -> Claims:
    found = compared({t: _best(groups[name], width) for t, groups in scores.items()})
    return Claims(found.alone, shared=sum(found.votes[2:]), nobody=found.votes[0])
