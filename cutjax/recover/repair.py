"""Scales and shifts set right where there is no BatchNorm to re-estimate."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cutjax.graph import Graph
from cutjax.recover.refit import Fit, scaling_of
from cutjax.recover.walk import recovered


def repair(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    keep: Mapping[str, np.ndarray],
    batches: Iterable[Any],
    *,
    tasks: Sequence[str] | str | None = None,
    rows: int = 64,
    sharding: jax.sharding.Sharding | None = None,
    progress: bool = True,
) -> tuple[Any, list[Fit]]:
    """The cut parameters with what every reader makes as wide as in the parent.

    Each channel that a reader makes is scaled, and where there is a bias shifted, to
    the standard deviation and mean that it has in the parent. Two numbers per channel:
    a few dozen examples suffice, where `compensate` wants hundreds and does better.

    Args:
        apply: the full function.
        params: the full parameters.
        graph: their graph.
        keep: the channels to keep.
        batches: `(x, ...)` of calibration data, of equal sizes; targets are not looked
            at.
        tasks: as in `cut`.
        rows: see `compensate`.
        sharding: of the batches over devices.
        progress: show a progress bar.

    Returns:
        `(small_params, fits)`, as `compensate`.

    Raises:
        DataError: no calibration data, or NaN in what a reader sees.
        KeepError: the keep does not fit the graph.

    Reference:
        Jordan et al., REPAIR: REnormalizing Permuted Activations for Interpolation
        Repair, ICLR 2023, eq. 5; here of a cut network, in lockstep.
    """
    return recovered(
        *(apply, params, graph, keep, batches),
        lambda stop, number: scaling_of(stop, number, rows),
        tasks=tasks,
        sharding=sharding,
        progress=progress,
        label="repair",
    )
