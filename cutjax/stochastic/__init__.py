"""Trained gates: channels learn, along with the weights, whether they are needed.

Gates cost time in training only: once it is known what stays, the network is cut, and
what is left of the gates is a factor per channel (see `gated_tree`).
"""

from cutjax.stochastic.base import (
    Gates,
    channel_costs,
    gated_tree,
    per_task,
    renamed,
    weigh,
)
from cutjax.stochastic.hard_concrete import hard_concrete
from cutjax.stochastic.straight import straight_threshold, straight_topk
from cutjax.stochastic.vib import vib

__all__ = [
    "Gates",
    "channel_costs",
    "gated_tree",
    "hard_concrete",
    "per_task",
    "renamed",
    "straight_threshold",
    "straight_topk",
    "vib",
    "weigh",
]
