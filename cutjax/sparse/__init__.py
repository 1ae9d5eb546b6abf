"""Masks of single weights, N:M, blocks and channels, and optimisers that respect them.

Masks only: every array keeps its size, and nothing gets faster. To make a network
smaller, turn masks over channels into a keep and `cut`.
"""

from cutjax.sparse.channels import (
    channel_masks,
    channel_rigl,
    growable,
    reading_masks,
    scheduled_channels,
)
from cutjax.sparse.choose import best, block, n_m, topk
from cutjax.sparse.counts import erk, uniform
from cutjax.sparse.grow import dense, disparse, gradual, random_growth, rigl
from cutjax.sparse.optimizer import (
    MaskedState,
    ScheduledState,
    masked,
    masks_of,
    scheduled,
)
from cutjax.sparse.tasks import (
    Density,
    density,
    fuse_masks,
    iou,
    prunable,
    solve_density,
)
from cutjax.sparse.tree import apply_masks

__all__ = [
    "Density",
    "MaskedState",
    "ScheduledState",
    "apply_masks",
    "best",
    "block",
    "channel_masks",
    "channel_rigl",
    "dense",
    "density",
    "disparse",
    "erk",
    "fuse_masks",
    "gradual",
    "growable",
    "iou",
    "masked",
    "masks_of",
    "n_m",
    "prunable",
    "random_growth",
    "reading_masks",
    "rigl",
    "scheduled",
    "scheduled_channels",
    "solve_density",
    "topk",
    "uniform",
]
