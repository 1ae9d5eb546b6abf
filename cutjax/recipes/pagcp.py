"""PAGCP: groups cut one after another, as far as the worst task allows.

Ratios are decided on calibration data, and so is what is reported of the bound; nothing
here reads validation or test data. A group at a time is gated off channel by channel at
full size: nothing is compiled again for another keep.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from cutjax.allocate import Meter
from cutjax.dims import Keep
from cutjax.errors import BudgetError
from cutjax.gate import gate
from cutjax.graph import Graph
from cutjax.saliency.stream import Batch, Loss, padded, singles, task_losses

Losses = dict[str, float]


class Bound(NamedTuple):
    """Loss per task before and after, and by how much each may rise.

    `bound`: the largest allowed quotient of after and before. `met`: per task.
    """

    before: Losses
    after: Losses
    bound: float
    met: dict[str, bool]

    def __str__(self) -> str:
        rows = [
            f"{task}: {self.before[task]:.4g} -> {self.after[task]:.4g} "
            f"(x{_quotient(self.before[task], self.after[task]):.3f}, "
            f"{'within' if good else 'ABOVE'} x{self.bound:g})"
            for task, good in self.met.items()
        ]
        return "\n".join(rows)


def task_losses_at(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    losses: Mapping[str, Loss],
    batches: Iterable[Batch],
    *,
    progress: bool = False,
) -> Callable[[Keep], Losses]:
    """The mean loss of every task as a function of a keep, compiled once.

    Args:
        apply: the full function.
        params: its parameters.
        graph: its graph.
        losses: per task.
        batches: calibration data, held in memory.
        progress: show a progress bar.

    Returns:
        `f(keep) -> {task: loss}`: channels that go are gated to zero.
    """
    gated, compute = gate(apply, graph), task_losses(losses, graph)
    held = list(padded(batches, tuple(losses), progress=progress, label="losses"))

    @jax.jit
    def step(gates, params, inputs, targets, weights):
        def one(inputs, targets):
            return compute(gated(gates, params, *inputs), targets)

        batch, axes = singles((inputs, targets))
        return jnp.einsum("b,bt->t", weights, jax.vmap(one, axes)(*batch))

    count = float(sum(weights.sum() for _, _, weights in held))

    def at(keep: Keep) -> Losses:
        gates = {
            g.name: jnp.asarray(keep.get(g.name, np.ones(g.size, bool)), jnp.float32)
            for g in graph.free
        }
        total = sum(
            np.asarray(step(gates, params, *batch), np.float64) for batch in held
        )
        return dict(zip(losses, (np.asarray(total) / count).tolist(), strict=True))

    return at


def pagcp(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    losses: Mapping[str, Loss],
    batches: Iterable[Batch],
    scores: Mapping[str, np.ndarray],
    *,
    bound: float = 1.1,
    decay: float = 0.9,
    step: float = 0.05,
    share: float = 0.5,
    max_ratio: float = 0.9,
    tasks: Sequence[str] | None = None,
    progress: bool = True,
) -> tuple[dict[str, np.ndarray], Bound]:
    """One round of PAGCP: what to keep so that no task's loss rises above a bound.

    Args:
        apply: the full function.
        params: its parameters.
        graph: its graph.
        losses: per task; only these count.
        batches: calibration data.
        scores: per group, f32[n]: which channels of a group go first.
        bound: T, the largest quotient of a task's loss after and before.
        decay: lambda; group number i may raise the loss by r0 lambda^i, r0 solved so
            that the product of all 1 + r0 lambda^i is T.
        step: by how much a group's ratio rises at a time.
        share: P, how many of the groups are cut, those of least rise per FLOP.
        max_ratio: the largest share of a group that may go.
        tasks: whose FLOPs count; those with losses, if not given.
        progress: show a progress bar.

    Returns:
        `(keep, bound)`. The keep as a whole was measured again: while a task lies above
        its bound, the group that costs most per FLOP is given back. Measure the
        finished model with `recheck`.

    Raises:
        BudgetError: bound, decay, step or share that make no sense.

    Reference:
        Ye et al., Performance-aware Approximation of Global Channel Pruning for
        Multitask CNNs (PAGCP), TPAMI 2023, sections 3.2 to 3.4.
    """
    if not (bound > 1 and 0 < decay <= 1 and 0 < step < 1 and 0 < share <= 1):
        raise BudgetError(
            f"bound={bound} must be above 1, decay={decay} and share={share} in "
            f"(0, 1], step={step} in (0, 1)"
        )
    chosen = graph.check_tasks(tuple(losses) if tasks is None else tuple(tasks))
    at = task_losses_at(apply, params, graph, losses, batches)
    before = at({})
    order = _by_flops(graph, chosen)
    rises = _rises(bound, decay, len(order))
    keep: dict[str, np.ndarray] = {}
    price: dict[str, float] = {}
    bar = tqdm(order, desc="pagcp", disable=not progress, leave=False)
    for allowed, (name, saved) in zip(rises, bar, strict=True):
        now = at(keep)
        mask = _deepest(at, keep, name, scores[name], now, allowed, step, max_ratio)
        if mask is not None:
            keep[name] = mask
            gone = saved * float(1 - mask.mean())
            price[name] = (_worst(now, at(keep)) - 1) / max(gone, 1.0)
    cheap = sorted(price, key=price.__getitem__)
    keep = {n: keep[n] for n in cheap[: max(1, round(share * len(order)))]}
    while keep and _worst(before, at(keep)) > bound:
        keep.pop(max(keep, key=price.__getitem__))
    return keep, _bound(before, at(keep), bound)


def recheck(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    losses: Mapping[str, Loss],
    batches: Iterable[Batch],
    before: Losses,
    bound: float,
) -> Bound:
    """Measure a finished model against every task's bound.

    Args:
        apply: the finished function, cut and trained.
        params: its parameters.
        graph: its own graph.
        losses: per task.
        batches: calibration data.
        before: loss of the full model per task, `Bound.before`.
        bound: the largest quotient.

    Returns:
        What holds, task by task.
    """
    after = task_losses_at(apply, params, graph, losses, batches)({})
    return _bound(before, after, bound)


def _by_flops(graph: Graph, tasks: tuple[str, ...]) -> list[tuple[str, int]]:
    """The free groups of more than one channel and what all but one would save."""
    meter = Meter(graph, tasks, ("flops",))
    saved = {g.name: meter.saving(g.name, 1)["flops"] for g in graph.free if g.size > 1}
    return sorted(saved.items(), key=lambda item: -item[1])


def _rises(bound: float, decay: float, n: int) -> list[float]:
    """r0 lambda^i with the product of 1 + r0 lambda^i equal to the bound."""
    powers = decay ** np.arange(n)
    low, high = 0.0, bound - 1
    for _ in range(60):
        middle = (low + high) / 2
        if np.prod(1 + middle * powers) > bound:
            high = middle
        else:
            low = middle
    return (low * powers).tolist()


def _deepest(
    at: Callable[[Keep], Losses],
    keep: Keep,
    name: str,
    scores: np.ndarray,
    now: Losses,
    allowed: float,
    step: float,
    max_ratio: float,
) -> np.ndarray | None:
    """The deepest cut of a group whose worst task stays within what is allowed."""
    order, found = np.argsort(scores, kind="stable"), None
    n = len(order)
    most = min(int(max_ratio * n), n - 1)
    counts = np.unique(np.round(np.arange(step, 1, step) * n).astype(int))
    for gone in counts[(counts > 0) & (counts <= most)]:
        mask = np.ones(n, bool)
        mask[order[:gone]] = False
        if _worst(now, at({**keep, name: mask})) > 1 + allowed:
            break
        found = mask
    return found


def _worst(before: Losses, after: Losses) -> float:
    return max(_quotient(before[t], after[t]) for t in before)


def _quotient(before: float, after: float) -> float:
    return after / max(before, 1e-12)


def _bound(before: Losses, after: Losses, bound: float) -> Bound:
    met = {t: _quotient(before[t], after[t]) <= bound for t in before}
    return Bound(before, after, bound, met)
