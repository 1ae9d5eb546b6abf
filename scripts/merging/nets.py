"""The networks: one for the digits 0 to 4, one for 5 to 9, of one architecture."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

import cutjax as cj
from cutjax.data import Dataset, Split, batches, take
from cutjax.fit import fit
from cutjax.merge import Network

CLASSES = {"low": range(5), "high": range(5, 10)}
WIDTHS, EPOCHS, BATCH, RATE = (32, 32, 64, 64), 12, 64, 3e-3


class Net(nn.Module):
    """Four 3x3 convolutions with BatchNorm, two poolings, one head of five classes."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> dict[str, Any]:
        """Logits `[n, 5]` of images `[n, 28, 28, 1]`."""
        for number, width in enumerate(WIDTHS):
            x = nn.Conv(width, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            if number % 2:
                x = nn.max_pool(x, (2, 2), (2, 2))
        return {"digit": nn.Dense(5)(x.mean((1, 2)))}


class Pair(NamedTuple):
    """Both networks, their functions in train mode, and the data."""

    networks: dict[str, Network]
    trains: dict[str, Network]
    data: Dataset

    @property
    def graph(self) -> Any:
        """Of both."""
        return self.networks["low"].graph

    @property
    def calibration(self) -> list[Any]:
        """Images of all ten classes."""
        return [x for x, _ in batches(self.data.calibration, 125)]


def of(split: Split, classes: range) -> Split:
    """The examples of some classes, numbered from zero."""
    digits = split.y["digit"]
    chosen = take(split, np.flatnonzero(np.isin(digits, classes)))
    return Split(chosen.x, {"digit": chosen.y["digit"] - classes.start})


def pair(data: Dataset, seed: int) -> Pair:
    """Both networks trained, from different starts.

    Args:
        data: images with a task `digit`.
        seed: of the starts and of the order of examples.
    """
    model = Net()
    first = data.train.x[:1]

    def apply(p: Any, x: Any) -> Any:
        return model.apply(p, x, train=False)

    def train(p: Any, x: Any) -> Any:
        return model.apply(p, x, train=True, mutable=["batch_stats"])

    def loss(out: Any, y: Any) -> Any:
        cross = optax.softmax_cross_entropy_with_integer_labels
        return cross(out["digit"], y["digit"]).mean(), {}

    nets, trains = {}, {}
    for number, (name, classes) in enumerate(CLASSES.items()):
        split = of(data.train, classes)
        steps = EPOCHS * (len(split.x) // BATCH)
        start = model.init(jax.random.key(2 * seed + number), first, train=False)
        params, _ = fit(
            *(train, start, loss, split),
            optimizer=optax.adamw(optax.cosine_onecycle_schedule(steps, RATE)),
            epochs=EPOCHS,
            batch_size=BATCH,
            seed=seed,
            progress=False,
        )
        graph = nets["low"].graph if nets else cj.trace(apply, params, first)
        nets[name] = Network(apply, params, graph)
        trains[name] = Network(train, params, graph)
    return Pair(nets, trains, data)
