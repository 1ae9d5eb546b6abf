"""Cutting in several rounds: how much each may keep, and the rounds themselves.

A schedule is a sequence of shares of the parent, falling. `iterate` scores, cuts a
little, recovers and repeats; each round traces the function that is already small. The
keeps of the rounds compose to one keep of the parent, so that at the end the parent can
be cut once.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from cutjax.budget import Budget
from cutjax.cost import RESOURCES, Cost, amounts, key_of
from cutjax.dims import Keep, kept, leaves
from cutjax.errors import BudgetError, KeepError, MismatchError, suggest
from cutjax.graph import Graph
from cutjax.inputs import first, inputs_of
from cutjax.mirror import path_name
from cutjax.plan import plan
from cutjax.shrink import cut, mask, shrink, take
from cutjax.trace import trace

Score = Callable[[Callable[..., Any], Any, Graph], Mapping[str, Mapping[str, Any]]]
"""`score(apply, params, graph) -> {task: {group: f32[n]}}`."""

Recover = Callable[[Callable[..., Any], Any], Any]
"""`recover(apply, params) -> params`: some training; the shapes stay."""


def one_shot(end: float) -> tuple[float, ...]:
    """All at once.

    Args:
        end: the share that stays.

    Returns:
        One share.

    Example:
        >>> one_shot(0.1)
        (0.1,)
    """
    return _checked((end,))


def polynomial(
    end: float, rounds: int, *, start: float = 1.0, power: float | int = 3
) -> tuple[float, ...]:
    """Much at first, less and less towards the end.

    Args:
        end: the share that stays after the last round.
        rounds: how many.
        start: the share before the first.
        power: 3 in the paper, 1 is linear.

    Returns:
        After round r of R: `end + (start - end) (1 - r / R) ** power`.

    Example:
        >>> polynomial(0.25, 2, start=0.75, power=1)
        (0.5, 0.25)

    Reference:
        Zhu & Gupta, To Prune, or Not to Prune, 2017, equation 1.
    """
    _rounds(rounds)
    shares = [end + (start - end) * (1 - r / rounds) ** power for r in range(1, rounds)]
    return _checked((*shares, end), start)


def exponential(end: float, rounds: int, *, start: float = 1.0) -> tuple[float, ...]:
    """The same share of what is left goes in every round.

    Args:
        end: the share that stays after the last round.
        rounds: how many.
        start: the share before the first.

    Returns:
        After round r of R: `start (end / start) ** (r / R)`.

    Example:
        >>> exponential(0.25, 2)
        (0.5, 0.25)

    Reference:
        Frankle & Carbin, The Lottery Ticket Hypothesis, ICLR 2019: iterative pruning.
    """
    _rounds(rounds)
    shares = [start * (end / start) ** (r / rounds) for r in range(1, rounds)]
    return _checked((*shares, end), start)


def _rounds(rounds: int) -> None:
    if rounds < 1:
        raise BudgetError(f"{rounds} rounds; there is one at least")


def _checked(shares: tuple[float, ...], start: float = 1.0) -> tuple[float, ...]:
    """Shares in (0, 1] that do not rise."""
    path = (start, *shares)
    if not all(0 < s <= 1 for s in path) or any(
        b > a for a, b in itertools.pairwise(path)
    ):
        raise BudgetError(
            f"the shares {path} must lie in (0, 1] and not rise: start, then falling"
        )
    return shares


class Round(NamedTuple):
    """What a round leaves: `keep` of the parent, the function, its parameters, costs.

    `apply` and `params` are small, or, when masking, masked at full size. `graph` is
    the one that the next round would score.
    """

    keep: dict[str, np.ndarray]
    apply: Callable[..., Any]
    params: Any
    graph: Graph
    cost: Cost


def compose(
    graph: Graph,
    keep: Keep,
    inner: Keep,
    names: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, np.ndarray]:
    """A keep of what a keep left, in the coordinates of the whole.

    Args:
        graph: of the whole.
        keep: of the whole; groups not named are whole.
        inner: of the groups as `keep` left them.
        names: what they are called in the whole, where that is otherwise: `called`.

    Returns:
        One keep of the whole: cutting by it is cutting by one, then by the other.

    Raises:
        KeepError: `inner` names another group, or has another length.

    Example:
        >>> import jax.numpy as jnp, numpy as np, cutjax as cj
        >>> w = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))}
        >>> graph = cj.trace(lambda w, x: x @ w["a"] @ w["b"], w, jnp.ones((1, 2)))
        >>> first = {"a:1": np.array([True, False, True])}
        >>> compose(graph, first, {"a:1": np.array([False, True])})["a:1"].tolist()
        [False, False, True]
    """
    out = {name: np.array(m, bool) for name, m in keep.items()}
    for name, m in ((names.get(n, n), m) for n, m in inner.items()):
        whole = out.get(name, np.ones(graph[name].size, bool))
        left, m = np.flatnonzero(whole), np.asarray(m)
        if m.shape != left.shape or m.dtype != bool:
            raise KeepError(
                f"{name!r} has {left.size} channels left, but the keep of what is left "
                f"is {m.dtype}{list(m.shape)}"
            )
        out[name] = np.zeros(whole.size, bool)
        out[name][left[m]] = True
    return out


def called(graph: Graph, keep: Keep, here: Graph) -> dict[str, str]:
    """What the groups of what a keep left are called in the whole.

    Several groups of one axis are named by their order. One that has a single channel
    left counts no longer, and those after it move up.

    Args:
        graph: of the whole.
        keep: of the whole.
        here: of what is left.

    Returns:
        Names in the whole by names in `here`.
    """
    out: dict[str, str] = {}
    for path, axes in here.axes.items():
        for axis, whole in zip(axes, graph.axes[path], strict=True):
            now = [(leaf.size, leaf.name) for leaf in leaves(axis) if leaf.size > 1]
            sizes = ((int(kept(leaf, keep).sum()), leaf.name) for leaf in leaves(whole))
            was = [(size, name) for size, name in sizes if size > 1]
            if [size for size, _ in now] == [size for size, _ in was]:
                pairs = zip(now, was, strict=True)
                out |= {new: old for (_, new), (_, old) in pairs if new not in out}
    return out


def iterate(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    *,
    inputs: Sequence[Any],
    budgets: Sequence[Budget],
    score: Score,
    recover: Recover = lambda apply, params: params,
    tasks: Sequence[str] | str | None = None,
    masked: bool = False,
    plan: Callable[..., Any] = plan,
) -> Iterator[Round]:
    """Score, cut a little, recover; once per budget.

    Args:
        apply: the parent's function.
        params: its parameters.
        graph: its graph.
        inputs: what it was traced with; the batch size counts for FLOPs.
        budgets: of the rounds, falling. Fractions are of the *parent* for these tasks;
            `floor`, `multiple` and `max_ratio` hold of what each round finds. A group
            with one channel left is no group for the next: it stays, even if `floor` is
            0, as does a group that has gone whole.
        score: called each round with the function as it is then.
        recover: called after each cut; what it gives back is scored next.
        tasks: the tasks to keep; all, if not given.
        masked: stay at full size and mask (late cutting): the function that `recover`
            trains masks its parameters, and the same rounds can be cut at the end.
        plan: `plan(graph, scores, tasks=..., budget=...) -> (keep, info)`.

    Yields:
        A `Round` per budget. Its keep is a subset of the one before. In the end
        `cj.cut(apply, params, graph, last.keep, tasks)` has the shapes of
        `last.params`.

    Raises:
        BudgetError: budgets rise, or one cannot be met from where the rounds are.
        KeepError: scores or recovered parameters that do not fit.
        MismatchError: `inputs` are not like what the graph was traced with.

    Reference:
        Han et al., Learning both Weights and Connections, NeurIPS 2015; Renda et al.,
        Comparing Rewinding and Fine-tuning, ICLR 2020.
    """
    chosen = graph.check_tasks(tasks)
    # `tasks=None` leaves the outputs as they are.
    only = None if tasks is None else chosen
    keep: dict[str, np.ndarray] = {}
    fn, now = cut(apply, params, graph, keep, only)
    here, values = traced(fn, now, graph, inputs), params
    for limits in falling(budgets, graph, chosen):
        names = called(graph, keep, here)
        if masked:
            scores = _left(score(apply, values, graph), here, keep, names)
        else:
            scores = score(fn, now, here)
        inner, _ = plan(here, scores, tasks=chosen, budget=limits)
        before, keep = keep, compose(graph, keep, inner, names)
        now = cut_again(now, graph, before, keep)
        # From the parent: a function cut in every round would be rewritten as often.
        fn = shrink(apply, graph, keep, only)
        here = trace(fn, now, *inputs)
        cost = graph.cost(keep, tasks=chosen)
        if masked:
            trained = recover(_masking(apply, graph, keep), mask(values, graph, keep))
            values = mask(trained, graph, keep)
            yield Round(keep, _masking(apply, graph, keep), values, graph, cost)
        else:
            now = recover(fn, now)
            yield Round(keep, fn, now, here, cost)


def traced(
    fn: Callable[..., Any], params: Any, graph: Graph, inputs: Sequence[Any]
) -> Graph:
    """The graph of what is left, by inputs like those of the whole.

    Raises:
        MismatchError: `inputs` are of other shapes or types.
    """
    found = trace(fn, params, *inputs)
    if found.inputs != graph.inputs:
        raise MismatchError(
            f"the graph is of inputs {graph.inputs}, not {found.inputs}: FLOPs would "
            "be counted in other units; pass inputs=(...), what it was traced with"
        )
    return found


def like_traced(graph: Graph, batch: Any) -> tuple[Any, ...]:
    """One example, or the whole batch, as shapes: whichever the graph is of."""
    whole = jax.eval_shape(lambda x: x, inputs_of(batch, graph.inputs))
    one = jax.eval_shape(lambda x: first(x, 1), whole)
    shapes = tuple(f"{a.dtype}{list(a.shape)}" for a in jax.tree.leaves(one))
    return one if tuple(graph.inputs) == shapes else whole


def cut_again(params: Any, graph: Graph, keep: Keep, smaller: Keep) -> Any:
    """Parameters that were cut by `keep`, cut to what `smaller` leaves of it.

    The graph of the small function would not do: where a branch is gone whole, it no
    longer knows that what is left of the branch's kernels goes with the stream.

    Args:
        params: the small parameters.
        graph: of the whole.
        keep: what they were cut by.
        smaller: a subset of it.

    Returns:
        What cutting the whole parameters by `smaller` would have left.
    """

    def visit(path: tuple[Any, ...], leaf: Any) -> Any:
        for i, axis in enumerate(graph.axes[path_name(path)]):
            stays = kept(axis, smaller)[kept(axis, keep)]
            if not stays.all():
                leaf = take(leaf, np.flatnonzero(stays), i)
        return leaf

    return jax.tree_util.tree_map_with_path(visit, params)


def absolute(budget: Budget, graph: Graph, tasks: tuple[str, ...]) -> Budget:
    """The same limits as whole numbers, that a shrinking parent does not shrink them.

    Args:
        budget: fractions of the parent, or whole numbers.
        graph: of the parent.
        tasks: those that are kept.

    Returns:
        A budget in whole numbers, its other rules unchanged.
    """
    full = amounts(graph, {}, tasks)

    def whole(resource: str, scope: str, value: Any) -> int:
        if isinstance(value, float):
            value = int(value * full[key_of(resource, scope)])
        return max(value, 1)

    out: dict[str, Any] = {}
    for resource in RESOURCES:
        value = getattr(budget, resource)
        if isinstance(value, Mapping):
            out[resource] = {s: whole(resource, s, v) for s, v in value.items()}
        elif value is not None:
            out[resource] = whole(resource, "all", value)
    return replace(budget, **out)


def falling(
    budgets: Sequence[Budget], graph: Graph, tasks: tuple[str, ...]
) -> list[Budget]:
    """The budgets of rounds as whole numbers, see `absolute`.

    Raises:
        BudgetError: one leaves more of something than the one before.
    """
    limits = [absolute(budget, graph, tasks) for budget in budgets]
    for number, (before, after) in enumerate(itertools.pairwise(limits), 2):
        for key, amount in after.asked.items():
            if amount > (least := before.asked.get(key, amount)):
                raise BudgetError(
                    f"budget {number} leaves {amount:,} {key}, more than the {least:,} "
                    "of the one before: what is gone stays gone, so let budgets fall"
                )
    return limits


def _masking(apply: Callable[..., Any], graph: Graph, keep: Keep) -> Callable[..., Any]:
    """The function of masked parameters: no gradient reaches what is masked."""
    return lambda params, *inputs: apply(mask(params, graph, keep), *inputs)


def _left(
    scores: Mapping[str, Mapping[str, Any]],
    here: Graph,
    keep: Keep,
    names: Mapping[str, str],
) -> dict[str, dict[str, np.ndarray]]:
    """Scores at full size, of the channels that are left."""
    out = {}
    for task, groups in scores.items():
        out[task] = {}
        for group in here.free:
            if (name := names.get(group.name, group.name)) not in groups:
                raise KeepError(
                    f"scores[{task!r}] lack the group {name!r}; {suggest(name, groups)}"
                )
            values = np.asarray(groups[name])
            out[task][group.name] = values[keep[name]] if name in keep else values
    return out
