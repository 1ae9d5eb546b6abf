"""What both sides share: networks, budgets, images, steps, and a count of the work."""

import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
WEIGHTS = SHARED / "weights" / "resnet_cifar10"

FACTORS = (2.5, 2.1)
"""How many times fewer multiply-adds. Methods and rates are chosen at the first."""

SEEDS = (0, 1, 2)
"""Draw the calibration images, the images to train on, random channels."""

RATES, MIDDLE = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), 3e-3
"""Peaks of the one-cycle schedule; the one that methods are compared with."""

BATCH, TEMPERATURE, DECAY = 64, 2.0, 1e-4
VALIDATION, CALIBRATION = 2000, 512
SCREENED = 500
"""Of the validation images, to see which methods are worth fine-tuning."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, as the published weights want it."""


class Net(NamedTuple):
    """A published network: its weights, blocks per stage, and how long it is tuned.

    `steps`: of fine-tuning. `tried`: of how many criteria each side fine-tunes the best
    variant, to choose; more for Torch-Pruning, which has more of them, and whose order
    before fine-tuning says little about that after it. `like`: the network on which
    cutjax's method and statistics are chosen, if not on this one.
    """

    file: str
    blocks: int
    steps: int
    tried: dict[str, int]
    like: str | None = None


NETS = {
    "resnet20": Net("resnet20-12fca82f.npz", 3, 200, {"ours": 2, "theirs": 4}),
    "resnet56": Net("resnet56-4bfd9763.npz", 9, 100, {"theirs": 3}, "resnet20"),
}


def machine() -> str:
    """The processor that this runs on, and how many cores it may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {name}"


def climb(reached: Callable[[float], float]) -> float:
    """The learning rate from which both neighbours are worse, or the last one.

    Args:
        reached: what a rate reaches, higher is better; asked once or twice per rate.

    Returns:
        One of `RATES`, going up from `MIDDLE` or down from it.
    """
    at = RATES.index(MIDDLE)
    for step in (1, -1):
        # Ties go to the rate that was asked first, so this ends.
        while 0 <= at + step < len(RATES) and (
            reached(RATES[at + step]) > reached(RATES[at])
        ):
            at += step
    return RATES[at]


Widths = Mapping[str, tuple[int, int]]


def multiply_adds(widths: Widths) -> int:
    """Of the 3x3 convolutions and the classifier, by their widths: one count for all.

    What a skip costs is left out: ours is a slice and a concatenation, that of
    Torch-Pruning a 1x1 convolution of zeros and ones that a deployment need not run.

    Args:
        widths: `(inputs, outputs)` by layer, named as in the published weights.
    """
    total = 0
    for name, (inputs, outputs) in widths.items():
        stage = name.split(".")[0]
        side = {"layer2": 16, "layer3": 8}.get(stage, 32)
        window = 1 if name == "linear" else 9 * side * side
        total += window * inputs * outputs
    return total


def parameters(widths: Widths) -> int:
    """Weights of the same layers, biases and two per channel of BatchNorm included."""
    return sum(
        (i + 1) * o if name == "linear" else (9 * i + 2) * o
        for name, (i, o) in widths.items()
    )


def full_widths(blocks: int) -> dict[str, tuple[int, int]]:
    """The widths of the published network."""
    widths, last = {"conv1": (3, 16)}, 16
    for stage, width in enumerate((16, 32, 64), 1):
        for block in range(blocks):
            widths[f"layer{stage}.{block}.conv1"] = (last, width)
            widths[f"layer{stage}.{block}.conv2"] = (width, width)
            last = width
    return widths | {"linear": (last, 10)}
