"""Unstructured methods: masks of single weights over the trunk and each task's head.

Masks only: every array keeps its size and nothing gets faster. They are here to compare
with the papers that prune like this. Densities are those *realised* once the tasks'
masks are fused, solved for and never tuned by hand.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cutjax.graph import Graph
from cutjax.mirror import named_leaves
from cutjax.saliency.criterion import Criterion, Measure, Sums
from cutjax.saliency.gather import gather
from cutjax.saliency.seen import floats
from cutjax.saliency.slopes import BATCH_PRODUCTS, GRADIENTS
from cutjax.saliency.stream import Batch, Loss
from cutjax.sparse import (
    disparse,
    erk,
    prunable,
    scheduled,
    solve_density,
    topk,
)
from cutjax.sparse.tasks import Solved

Trees = dict[str, Any]


def cut_weights(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    losses: Mapping[str, Loss],
    batches: Iterable[Batch],
    *,
    density: float,
    votes: int = 1,
    batch: int = 32,
    progress: bool = True,
) -> tuple[Any, Solved]:
    """CUT as its code does it: |w dL/dw| of batch after batch, top weights, n votes.

    Args:
        apply: the full function.
        params: its parameters.
        graph: its graph.
        losses: of the chosen tasks.
        batches: calibration data.
        density: the share of the weights of trunk and chosen heads that stays.
        votes: n: how many tasks must keep a weight of the trunk.
        batch: examples whose gradient is taken at once, part of the definition.
        progress: show a progress bar.

    Returns:
        `(masks, info)`; `info.asked` is the kappa that the authors tune by hand.

    Reference:
        CUT, 2504.09803; batch norm and biases are never pruned.
    """
    full = (apply, params, graph, losses, batches)
    sums = _gathered(full, BATCH_PRODUCTS, batch=batch, progress=progress)
    scores = _by_task(params, graph, losses, lambda p, w, g: g, sums)
    return solve_density(scores, graph, density, k=votes)


def snip_weights(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    losses: Mapping[str, Loss],
    batches: Iterable[Batch],
    *,
    density: float,
    progress: bool = True,
) -> tuple[Any, Solved]:
    """SNIP: the sum over tasks of |w dL/dw| of the mean loss, one ranking.

    Args:
        apply: the full function.
        params: its parameters; fresh ones, as in the paper, or trained.
        graph: its graph.
        losses: of the chosen tasks.
        batches: calibration data.
        density: the share of the weights of trunk and chosen heads that stays.
        progress: show a progress bar.

    Returns:
        `(masks, info)`.

    Reference:
        Lee, Ajanthan & Torr, SNIP, ICLR 2019, eq. 5 and 6.
    """
    full = (apply, params, graph, losses, batches)
    sums = _gathered(full, GRADIENTS, progress=progress)
    scores = _by_task(params, graph, losses, lambda p, w, g: np.abs(w * g), sums)
    total: dict[str, Any] = {}
    for tree in scores.values():
        for path, value in named_leaves(tree).items():
            total[path] = total.get(path, 0.0) + value
    whole = _tree(params, graph, tuple(losses), total)
    return solve_density({next(iter(losses)): whole}, graph, density)


def disparse_weights(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    losses: Mapping[str, Loss],
    batches: Iterable[Batch],
    *,
    density: float,
    static: bool = False,
    progress: bool = True,
) -> tuple[Any, Solved]:
    """DiSparse, static or pre-trained: top weights per task, the trunk by union.

    Args:
        apply: the full function.
        params: its parameters: fresh ones for the static mode, else trained.
        graph: its graph.
        losses: of the chosen tasks.
        batches: calibration data.
        density: the share of the weights of trunk and chosen heads that stays.
        static: score |w dL/dw| (SNIP) rather than |dL/dw| w^2.
        progress: show a progress bar.

    Returns:
        `(masks, info)`.

    Reference:
        Sun et al., DiSparse, CVPR 2022, sections 3.1 and 3.2.
    """
    full = (apply, params, graph, losses, batches)
    sums = _gathered(full, GRADIENTS, progress=progress)
    power = 1 if static else 2
    fn = lambda p, w, g: np.abs(g) * np.abs(w) ** power  # noqa: E731
    scores = _by_task(params, graph, losses, fn, sums)
    return solve_density(scores, graph, density)


def disparse_dynamic(
    inner: optax.GradientTransformation,
    params: Any,
    graph: Graph,
    *,
    density: float,
    stop: int,
    every: int = 100,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """DiSparse, dynamic: training under masks that drop and grow, task by task.

    Args:
        inner: any optimiser.
        params: fresh parameters.
        graph: their graph.
        density: share of the weights of all kernels, divided by ERK.
        stop: the last step that changes masks.
        every: steps between changes.
        seed: of the first masks.

    Returns:
        An optimiser; `update` takes `task_grads={task: gradients}`.

    Reference:
        Sun et al., DiSparse, CVPR 2022, section 3.3.
    """
    masks = random_weights(params, graph, density=density, seed=seed)
    return scheduled(inner, disparse(stop), masks, every=every, stop=stop, seed=seed)


def lth_weights(
    params: Any, graph: Graph, *, density: float, tasks: Any = None
) -> tuple[Any, Solved]:
    """One-shot magnitude: the largest weights of all kernels.

    Args:
        params: trained parameters.
        graph: their graph.
        density: the share of the weights of trunk and chosen heads that stays.
        tasks: the chosen tasks; all, if not given.

    Returns:
        `(masks, info)`.

    Reference:
        Han et al., NeurIPS 2015; the one-shot ticket of Frankle & Carbin, ICLR 2019.
    """
    chosen = graph.check_tasks(tasks)
    size = jax.tree.map(jnp.abs, prunable(params, graph, tasks=chosen))
    return solve_density({chosen[0]: size}, graph, density)


def random_weights(params: Any, graph: Graph, *, density: float, seed: int = 0) -> Any:
    """Weights by chance, layer densities by ERK: where sparse training starts.

    Args:
        params: any parameters.
        graph: their graph.
        density: the share of all kernels' weights that stays.
        seed: of the draw.

    Returns:
        Masks.
    """
    rng = np.random.default_rng(seed)
    drawn = jax.tree.map(
        lambda v: jnp.asarray(rng.random(v.shape), jnp.float32), prunable(params, graph)
    )
    return topk(drawn, density, counts=erk)


def _gathered(
    full: tuple, measure: Measure, *, batch: int | None = None, progress: bool
) -> dict[str, np.ndarray]:
    """Mean of a measurement of weights over the calibration data, `[tasks, ...]`.

    `full`: function, parameters, graph, losses and batches.
    """
    named = {"weights": Criterion("weights", lambda problem, sums: {}, measure, batch)}
    state = gather(*full, criteria=named, progress=progress)
    total = jax.tree.map(np.asarray, state.total[measure.name])
    return Sums(total, None, int(state.examples)).mean()


def _by_task(params, graph: Graph, losses, fn: Callable, sums) -> Trees:
    """Scores of every task over its trunk and own head, None elsewhere."""
    weights = {p: np.asarray(w, np.float64) for p, w in floats(params).items()}
    out = {}
    for i, task in enumerate(losses):
        values = {p: fn(p, weights[p], g[i]) for p, g in sums.items()}
        out[task] = _tree(params, graph, (task,), values)
    return out


def _tree(params, graph: Graph, tasks: tuple[str, ...], values: Mapping[str, Any]):
    leaves = [
        np.asarray(values[p], np.float32) if p in values else leaf
        for p, leaf in named_leaves(params).items()
    ]
    return prunable(jax.tree.unflatten(graph.treedef, leaves), graph, tasks=tasks)
