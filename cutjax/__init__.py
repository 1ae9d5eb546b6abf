"""cutjax: pruning as a JAX transformation.

`trace` finds the channel groups of any function, `saliency` scores them per task,
`plan` solves for a budget, `cut` returns the smaller function and its parameters.
"""

import importlib
from typing import TYPE_CHECKING, Any

from cutjax import (
    allocate,
    criteria,
    fuse,
    merge,
    normalize,
    recipes,
    recover,
    rules,
    schedule,
    sparse,
    stochastic,
)
from cutjax.agreement import agreement
from cutjax.allocate import greedy, uniform
from cutjax.budget import Budget
from cutjax.checkpoint import load, read, save
from cutjax.cost import Cost
from cutjax.cut_state import cut_state
from cutjax.dims import Keep
from cutjax.errors import CutjaxError
from cutjax.feasible import feasible
from cutjax.gate import gate
from cutjax.graph import Graph, Group
from cutjax.pareto import front, worst_case
from cutjax.plan import plan
from cutjax.recover import compensate, finetune, recalibrate, repair, teach
from cutjax.rules import register_rule
from cutjax.saliency import fisher, joint, l1, random, saliency, taylor
from cutjax.shrink import cut, cut_params, mask, select, shrink
from cutjax.trace import trace

if TYPE_CHECKING:
    from cutjax import equinox, linen, nnx

__all__ = [
    "Budget",
    "Cost",
    "CutjaxError",
    "Graph",
    "Group",
    "Keep",
    "agreement",
    "allocate",
    "compensate",
    "criteria",
    "cut",
    "cut_params",
    "cut_state",
    "equinox",
    "feasible",
    "finetune",
    "fisher",
    "front",
    "fuse",
    "gate",
    "greedy",
    "joint",
    "l1",
    "linen",
    "load",
    "mask",
    "merge",
    "nnx",
    "normalize",
    "plan",
    "random",
    "read",
    "recalibrate",
    "recipes",
    "recover",
    "register_rule",
    "repair",
    "rules",
    "saliency",
    "save",
    "schedule",
    "select",
    "shrink",
    "sparse",
    "stochastic",
    "taylor",
    "teach",
    "trace",
    "uniform",
    "worst_case",
]


def __getattr__(name: str) -> Any:
    # Adapters import their framework, so they are imported when asked for.
    if name in ("equinox", "linen", "nnx"):
        return importlib.import_module(f"cutjax.{name}")
    raise AttributeError(f"module 'cutjax' has no attribute {name!r}")
