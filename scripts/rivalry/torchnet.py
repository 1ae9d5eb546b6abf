"""The published networks in PyTorch, in a form that Torch-Pruning understands."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """The basic block. The skip without parameters is a 1x1 convolution of 0 and 1.

    Torch-Pruning 1.6.1 has no rule for `F.pad`: it takes it for elementwise, couples
    the wrong channels and says nothing. As a convolution the skip computes the same,
    and leaves the widths of the stages free.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Identity()
        if stride > 1:
            self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            weight = torch.zeros(outputs, inputs, 1, 1)
            rows = torch.arange(inputs)
            weight[rows + (outputs - inputs) // 2, rows] = 1
            self.skip.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.skip(x))


class Net(nn.Module):
    """He et al.'s residual network for CIFAR-10, named like the published weights."""

    def __init__(self, blocks: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        last = 16
        for stage, width in enumerate((16, 32, 64), 1):
            made = []
            for block in range(blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                made.append(Block(last, width, stride))
                last = width
            setattr(self, f"layer{stage}", nn.Sequential(*made))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def parent(path: Path, blocks: int) -> Net:
    """A network with its published weights, in inference."""
    with np.load(path) as file:
        arrays = {name: torch.tensor(file[name]) for name in file.files}
    net = Net(blocks)
    found = net.load_state_dict(arrays, strict=False)
    made_here = ("skip.weight", "num_batches_tracked")
    missing = [name for name in found.missing_keys if not name.endswith(made_here)]
    if missing or found.unexpected_keys:
        raise SystemExit(f"{path}: missing {missing}, extra {found.unexpected_keys}")
    return net.eval()


def widths(net: Net) -> dict[str, tuple[int, int]]:
    """`(inputs, outputs)` of what `protocol.multiply_adds` counts."""
    found = {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d) and not name.endswith("skip"):
            found[name] = (layer.in_channels, layer.out_channels)
    return found | {"linear": (net.linear.in_features, net.linear.out_features)}


def answers(net: Net, x: np.ndarray, size: int = 500) -> np.ndarray:
    """Logits of images `[n, h, w, c]`, in inference."""
    net.eval()
    with torch.no_grad():
        parts = [net(images(x[i : i + size])).numpy() for i in range(0, len(x), size)]
    return np.concatenate(parts)


def accuracy(net: Net, part: tuple[np.ndarray, np.ndarray]) -> float:
    """Percent of labels that are right."""
    x, y = part
    return 100 * float((answers(net, x).argmax(1) == y).mean())


def images(x: np.ndarray) -> torch.Tensor:
    """`[n, h, w, c]` as PyTorch wants it."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
