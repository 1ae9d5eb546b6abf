"""Torch-Pruning's side: its criteria and scopes, cut to a number of multiply-adds."""

import copy
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from rivalry.protocol import multiply_adds
from rivalry.torchnet import Net, images, widths

Part = tuple[np.ndarray, np.ndarray]

CRITERIA: dict[str, Callable[[], object]] = {
    "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
    "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "bn_scale": tp.importance.BNScaleImportance,
    "lamp": tp.importance.LAMPImportance,
    "fpgm": tp.importance.FPGMImportance,
    "taylor": tp.importance.GroupTaylorImportance,
    "hessian": tp.importance.GroupHessianImportance,
    "random": tp.importance.RandomImportance,
}

SCOPES = {
    "local": {"global_pruning": False},
    "global": {"global_pruning": True},
    "isomorphic": {"global_pruning": True, "isomorphic": True},
}

FORMS = ("all", "inner")
"""`inner`: only the channels inside the blocks, the residual stream stays whole."""


class Method(NamedTuple):
    """A way to choose channels with Torch-Pruning."""

    criterion: str
    scope: str
    form: str

    @property
    def name(self) -> str:
        return "/".join(self)


METHODS = [
    Method(criterion, scope, form)
    for criterion, scope, form in itertools.product(CRITERIA, SCOPES, FORMS)
    # Inner channels are all isomorphic: that scope is `global` there.
    if (scope, form) != ("isomorphic", "inner")
]

Slopes = dict[str, dict[str, torch.Tensor]]


def slopes(net: Net, part: Part) -> Slopes:
    """What the criteria with data read from `.grad`, by parameter.

    `taylor`: the gradient of the mean loss. `hessian`: the mean of squared gradients of
    single examples; `GroupHessianImportance.accumulate_grad` itself keeps only the last
    example (it looks a name up among parameters), so it is given more than it takes.
    """
    x, y = images(part[0]), torch.from_numpy(part[1]).long()
    net = copy.deepcopy(net).eval()
    named = dict(net.named_parameters())
    squares = {name: torch.zeros_like(p) for name, p in named.items()}
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    for i in range(len(x)):
        net.zero_grad()
        F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()
        for name, p in named.items():
            squares[name] += p.grad**2 / len(x)
            total[name] += p.grad / len(x)
    return {"taylor": total, "hessian": squares}


def cut(net: Net, method: Method, most: float, found: Slopes, seed: int) -> Net:
    """The network at the least pruning ratio that leaves at most `most` multiply-adds.

    Torch-Pruning has no budget but this ratio: it is found by bisection.
    """
    low, high, best = 0.0, 0.98, None
    for _ in range(14):
        ratio = (low + high) / 2
        small = _cut_by(net, method, ratio, found, seed)
        if multiply_adds(widths(small)) <= most:
            high, best = ratio, small
        else:
            low = ratio
    if best is None:
        raise ValueError(f"{method.name}: no ratio reaches {most:.4g} multiply-adds")
    return best


def _cut_by(net: Net, method: Method, ratio: float, found: Slopes, seed: int) -> Net:
    torch.manual_seed(seed)
    small = copy.deepcopy(net)
    for name, p in small.named_parameters():
        known = found.get(method.criterion)
        p.grad = None if known is None else known[name].clone()
    pruner = tp.pruner.BasePruner(
        small,
        torch.zeros(1, 3, 32, 32),
        importance=CRITERIA[method.criterion](),
        pruning_ratio=ratio,
        ignored_layers=[small.linear, *_stream(small, method.form)],
        **SCOPES[method.scope],
    )
    pruner.step()
    small.zero_grad()
    return small.eval()


def _stream(net: Net, form: str) -> list[nn.Module]:
    """The makers of the residual stream, where it is to stay whole."""
    if form == "all":
        return []
    ends = ("conv2", "skip")
    inside = [m for n, m in net.named_modules() if n.endswith(ends)]
    return [net.conv1, *(m for m in inside if isinstance(m, nn.Conv2d))]


def re_estimated(net: Net, x: np.ndarray) -> Net:
    """A copy with exact BatchNorm statistics of these images."""
    net = copy.deepcopy(net)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # those of the one batch
    net.train()
    with torch.no_grad():
        net(images(x))
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
    return net.eval()
