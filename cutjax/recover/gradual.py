"""Cut a little, refit, distil, repeat: far cuts need scores of what is left by then."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from cutjax.budget import Budget
from cutjax.errors import DataError
from cutjax.graph import Graph
from cutjax.plan import plan
from cutjax.recover.compensate import compensate
from cutjax.schedule import (
    Round,
    Score,
    called,
    compose,
    cut_again,
    falling,
    like_traced,
    traced,
)
from cutjax.shrink import cut, shrink
from cutjax.trace import trace

Distil = Callable[[Callable[..., Any], Any], Any]


def gradually(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    batches: Iterable[Any],
    *,
    budgets: Sequence[Budget],
    score: Score,
    inputs: Sequence[Any] | None = None,
    distil: Distil | None = None,
    tasks: Sequence[str] | str | None = None,
    plan: Callable[..., Any] = plan,
    **options: Any,
) -> Iterator[Round]:
    """Rounds of scoring, cutting, compensating and, if asked, distilling.

    Without `distil` every round refits the parent's kernels to the parent, so that
    errors do not add up over rounds. With it, a round refits what the last one trained.

    Args:
        apply: the parent's function.
        params: its parameters.
        graph: its graph.
        batches: `(x, ...)` of calibration data, of equal sizes.
        budgets: of the rounds, falling, as for `cutjax.schedule.iterate`; fractions are
            of the parent: `[Budget(params=s) for s in exponential(0.1, 3)]`, say.
        score: `score(apply, params, graph) -> scores`, called with what is left.
        inputs: what the graph was traced with, or the shapes: the batch size counts for
            FLOPs. Not given, one example of the data or a whole batch, as it was.
        distil: `distil(apply, params) -> params`, called after each refit.
        tasks: the tasks to keep; all, if not given.
        plan: `plan(graph, scores, tasks=..., budget=...) -> (keep, info)`.
        options: of `compensate`.

    Yields:
        A `Round` per budget; its keep is of the parent and a subset of the one before.

    Raises:
        BudgetError: budgets rise, or one cannot be met from where the rounds are.
        DataError: no calibration data.
        KeepError: scores that do not fit.
        MismatchError: `inputs` are not like what the graph was traced with.
    """
    data = list(batches)
    if not data:
        raise DataError("the calibration data is empty; pass batches of (x, ...)")
    chosen = graph.check_tasks(tasks)
    only = None if tasks is None else chosen
    keep: dict[str, np.ndarray] = {}
    fn, now = cut(apply, params, graph, keep, only)
    inputs = like_traced(graph, data[0]) if inputs is None else inputs
    here = traced(fn, now, graph, inputs)
    for limits in falling(budgets, graph, chosen):
        scores = score(fn, now, here)
        inner, _ = plan(here, scores, tasks=chosen, budget=limits)
        before, keep = keep, compose(graph, keep, inner, called(graph, keep, here))
        if distil is None:
            now, _ = compensate(apply, params, graph, keep, data, tasks=only, **options)
        else:
            as_cut = cut_again(now, graph, before, keep)
            now, _ = compensate(fn, now, here, inner, data, **options)
            # Where a branch is gone whole, the graph of what is left does not see that
            # its kernels go with the stream.
            if jax.tree.map(np.shape, now) != jax.tree.map(np.shape, as_cut):
                now = as_cut
        fn = shrink(apply, graph, keep, only)
        now = now if distil is None else distil(fn, now)
        here = trace(fn, now, *inputs)
        yield Round(keep, fn, now, here, graph.cost(keep, tasks=chosen))
