"""Criteria: each maps a function, its parameters, graph and data to scores per task."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cutjax.errors import CutjaxError, suggest
from cutjax.graph import Graph
from cutjax.saliency.activation import (
    mean_activation as mean_activation,
    wanda as wanda,
    zero_rate as zero_rate,
)
from cutjax.saliency.chance import random as random
from cutjax.saliency.cosine import cosprune as cosprune
from cutjax.saliency.criterion import Criterion as Criterion, Scores as Scores
from cutjax.saliency.family import Family as Family, criterion as criterion
from cutjax.saliency.fisher import fisher as fisher
from cutjax.saliency.gather import finish as finish, gather as gather, score
from cutjax.saliency.gram import gram as gram
from cutjax.saliency.hessian import hessian as hessian
from cutjax.saliency.information import mutual_information as mutual_information
from cutjax.saliency.joint import joint as joint
from cutjax.saliency.median import fpgm as fpgm
from cutjax.saliency.norms import (
    bn_scale as bn_scale,
    l1 as l1,
    l2 as l2,
    lamp as lamp,
    linf as linf,
)
from cutjax.saliency.reconstruction import reconstruction as reconstruction
from cutjax.saliency.slopes import cut as cut, grasp as grasp, snip as snip
from cutjax.saliency.stream import Batch, Loss
from cutjax.saliency.taylor import (
    taylor as taylor,
    taylor_signed as taylor_signed,
    taylor_squared as taylor_squared,
)

ALL = {
    f.name: f
    for f in (
        *(taylor, taylor_squared, taylor_signed, fisher, gram, hessian, joint),
        reconstruction,
        *(cut, snip, grasp, cosprune),
        *(l1, l2, linf, bn_scale, lamp, fpgm),
        *(mean_activation, zero_rate, wanda, mutual_information, random),
    )
}
"""Every criterion by name."""

Own = Callable[..., dict[str, Scores]]
Many = Mapping[str, Family | Criterion] | Sequence[Family | Criterion | str]


def saliency(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    losses: Mapping[str, Loss],
    batches: Iterable[Batch],
    *,
    criterion: Family | Criterion | str | Own | Many = joint,
    batch_size: int | None = None,
    sharding: Any = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Score every channel for every task, in one pass over the data.

    Args:
        apply: the full function, `apply(params, x) -> {task: output}`.
        params: its parameters.
        graph: its graph.
        losses: per task, `loss(output, target) -> scalar`.
        batches: `(x, {task: target})`, of calibration data; `(x, target)`, where one
            task has a loss. Every leaf has the examples in front, or no axis: a number
            or a random key for all of them.
        criterion: of `cutjax.criteria`: `taylor`, `joint(damping=1e-2)`, ...; or the
            name of one; several (a mapping or a sequence) share the pass; or a function
            of your own, `f(apply, params, graph, losses, batches, progress=...)`. Not
            given, the one that kept the most in the study (docs/study.md).
        batch_size: examples per step, whatever the sizes of the batches; not given,
            that of the first batch.
        sharding: of the examples over devices, `NamedSharding(mesh, P("data"))`.
        progress: show a progress bar.

    Returns:
        Per task and group, f32[n]; higher is kept. For several criteria, a dict of that
        by the criterion's name.

    Raises:
        DataError: empty data, a missing target, a loss or score that is NaN, leaves
            that do not have the examples in front.
        CutjaxError: no criterion of that name, or one that needs derivatives through a
            loop of unknown length.

    Warns:
        UserWarning: the loss of a task has no gradient; a criterion of second moments
            sees fewer rows (examples times positions) than channels; or examples are
            not independent.

    Example:
        >>> import jax.numpy as jnp, cutjax as cj
        >>> apply = lambda w, x: x @ w["a"] @ w["b"]
        >>> w = {"a": jnp.ones((2, 3)), "b": jnp.array([[1.0], [2.0], [0.0]])}
        >>> x, y = jnp.ones((4, 2)), {"output": jnp.zeros((4, 1))}
        >>> graph = cj.trace(apply, w, x)
        >>> loss = {"output": lambda out, y: ((out - y) ** 2).mean()}
        >>> both = cj.saliency(apply, w, graph, loss, [(x, y)],
        ...                    criterion=(cj.taylor, cj.l1), progress=False)
        >>> both["taylor"]["output"]["a:1"].tolist()
        [24.0, 48.0, 0.0]
    """
    args = (apply, params, graph, losses, batches)
    options: dict[str, Any] = {"batch_size": batch_size, "sharding": sharding}
    options["progress"] = progress
    if not isinstance(criterion, Family | Criterion | Mapping | Sequence):
        return criterion(*args, progress=progress)
    if isinstance(criterion, Family | Criterion | str):
        one = _made(criterion)
        return score(*args, criteria={one.name: one}, **options)[one.name]
    if isinstance(criterion, Mapping):
        named = {name: _made(c) for name, c in criterion.items()}
    else:
        named = {c.name: c for c in map(_made, criterion)}
    return score(*args, criteria=named, **options)


def _made(criterion: Any) -> Criterion:
    if isinstance(criterion, str):
        if criterion not in ALL:
            known = suggest(criterion, ALL)
            raise CutjaxError(f"no criterion {criterion!r} in cutjax.criteria; {known}")
        criterion = ALL[criterion]
    return criterion() if isinstance(criterion, Family) else criterion
