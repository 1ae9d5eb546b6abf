"""Methods of several rounds: CosPrune and its Taylor twin, iterative magnitude."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from cutjax import criteria
from cutjax.allocate import threshold
from cutjax.budget import Budget
from cutjax.graph import Graph
from cutjax.mirror import named_leaves
from cutjax.plan import plan
from cutjax.saliency import saliency
from cutjax.saliency.criterion import Criterion
from cutjax.saliency.stream import Batch, Loss
from cutjax.schedule import Round, iterate, like_traced
from cutjax.sparse import apply_masks, prunable, topk
from cutjax.sparse.tree import filled


def cosprune_rounds(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    losses: Mapping[str, Loss],
    batches: Sequence[Batch],
    *,
    budgets: Sequence[Budget],
    recover: Callable[[Callable[..., Any], Any], Any],
    criterion: Criterion | None = None,
    tasks: Sequence[str] | str | None = None,
    progress: bool = True,
) -> Iterator[Round]:
    """Score, drop the lowest channels of all groups, train, and again.

    Args:
        apply: the full function.
        params: its parameters.
        graph: its graph.
        losses: per task, two or more.
        batches: calibration data, read in every round.
        budgets: of the rounds, falling (see `cutjax.schedule`); the paper keeps five
            filters of a layer: `Budget(..., floor=5)`.
        recover: `recover(apply, params) -> params`, the training between rounds.
        criterion: `criteria.cosprune()` if not given; `criteria.taylor()` is the twin
            that the paper compares with.
        tasks: the tasks to keep.
        progress: show progress bars.

    Yields:
        A `Round` per budget.

    Reference:
        Garg, Zhang & Guan, Structured Pruning for Multi-Task Deep Neural Networks,
        2023.
    """
    chosen = criteria.cosprune() if criterion is None else criterion

    def of(fn: Callable[..., Any], now: Any, here: Graph) -> Any:
        full = (fn, now, here, losses, batches)
        return saliency(*full, criterion=chosen, progress=progress)

    return iterate(
        *(apply, params, graph),
        inputs=like_traced(graph, batches[0]),
        budgets=budgets,
        score=of,
        recover=recover,
        tasks=tasks,
        plan=partial(plan, allocate=threshold),
    )


def imp(
    params: Any,
    graph: Graph,
    train: Callable[[Any, Any], Any],
    densities: Sequence[float],
) -> tuple[Any, Any]:
    """Lottery tickets by iterative magnitude pruning with rewinding.

    Args:
        params: the weights to rewind to: those of the start, or of an early step.
        graph: of the parameters.
        train: `train(params, masks) -> params`, which keeps masked weights at zero (see
            `cutjax.sparse.masked`).
        densities: shares of the kernels' weights that stay after each round; one of
            them is the one-shot ticket.

    Returns:
        `(params, masks)`: the weights rewound and masked, to be trained once more.
        Masks only: nothing gets faster.

    Reference:
        Frankle & Carbin, The Lottery Ticket Hypothesis, ICLR 2019, strategy 1; with
        rewinding of Frankle et al., ICML 2020.
    """
    masks = jax.tree.map(lambda v: jnp.ones(v.shape, bool), prunable(params, graph))
    for density in densities:
        trained = train(apply_masks(params, masks), masks)
        size = jax.tree.map(jnp.abs, prunable(trained, graph))
        # What is gone stays gone, below every weight that is left.
        stays = named_leaves(masks)
        held = {p: jnp.where(stays[p], v, -1.0) for p, v in named_leaves(size).items()}
        masks = topk(filled(size, held), density)
    return apply_masks(params, masks), masks
