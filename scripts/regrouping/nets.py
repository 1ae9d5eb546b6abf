"""The networks: one per task, of one architecture, trained apart and kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.serialization import msgpack_restore
from studies import real
from studies.parents import write

import cutjax as cj
from cutjax.data import Dataset, Split, batches, take
from cutjax.fit import fit
from cutjax.losses import losses_for
from cutjax.merge import Network
from cutjax.models import MultiTaskResNet, eval_apply, init, train_apply

NAMES = ("morpho", "set_cards")
MEASURES = ("thickness", "slant", "width", "height")
EPOCHS, BATCH, RATE = {"morpho": 10, "set_cards": 6}, 64, 4e-3
CALIBRATION = 125


class Vgg(nn.Module):
    """Four 3x3 convolutions with BatchNorm, the first of stride 2, and a pooling."""

    outputs: int
    widths: tuple[int, ...] = (16, 32, 64, 64)

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> dict[str, Any]:
        """Answers `[n, outputs]` of images `[n, 28, 28, 1]`."""
        for number, width in enumerate(self.widths):
            strides = (1, 1) if number else (2, 2)
            x = nn.Conv(width, (3, 3), strides, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
            if number == 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
        return {"answer": nn.Dense(self.outputs)(x.mean((1, 2)))}


def model_of(name: str, outputs: int) -> nn.Module:
    """VGG-like for the digits, ResNet-like for the cards."""
    if name == "morpho":
        return Vgg(outputs)
    return MultiTaskResNet({"answer": outputs}, (24, 48, 96), (1, 1, 1), stem_stride=2)


class Nets(NamedTuple):
    """All networks by task, their functions in train mode, data and losses."""

    name: str
    networks: dict[str, Network]
    trains: dict[str, Network]
    data: Dataset
    losses: dict[str, Callable[..., Any]]

    @property
    def tasks(self) -> tuple[str, ...]:
        """In the order of the data."""
        return tuple(self.networks)

    @property
    def graph(self) -> Any:
        """Of the first, which all others equal but for their heads."""
        return next(iter(self.networks.values())).graph

    @property
    def calibration(self) -> list[tuple[Any, dict[str, Any]]]:
        """Batches of the whole split in an order that mixes its classes."""
        split = self.data.calibration
        rows = np.random.default_rng(7).permutation(len(split.x))
        whole = rows[: len(rows) // CALIBRATION * CALIBRATION]
        return list(batches(take(split, whole), CALIBRATION))


def load(name: str, cache: Path) -> Dataset:
    """Four tasks of cards, five of digits.

    Raises:
        real.Absent: their files are not there.
    """
    if name == "set_cards":
        return real.load(name, cache)
    folder = real.SHARED / "mnist"
    if not folder.is_dir():
        raise real.Absent(f"{name} is left out: no folder {folder}")
    return real.morpho(folder, MEASURES)


def nets(data: Dataset, seed: int, kept: Path) -> Nets:
    """The networks of all tasks, trained from different starts unless `kept`."""
    made: dict[int, tuple[Any, Any]] = {}
    losses = losses_for(data)
    found, trains = {}, {}
    for number, (task, classes) in enumerate(data.tasks.items()):
        outputs = classes or 1
        if outputs not in made:
            model = model_of(data.name, outputs)
            made[outputs] = eval_apply(model), train_apply(model)
        apply, train = made[outputs]
        file = kept / f"{data.name}-{seed}-{task}.msgpack"
        if not file.exists():
            start = init(model_of(data.name, outputs), data.train.x, 10 * seed + number)
            write(file, trained(train, start, losses[task], data, task, seed))
        params = jax.tree.map(jnp.asarray, msgpack_restore(file.read_bytes()))
        graph = cj.trace(apply, params, data.train.x[:1])
        found[task] = Network(apply, params, graph)
        trains[task] = Network(train, params, graph)
    return Nets(data.name, found, trains, data, losses)


def trained(
    train: Any, start: Any, loss: Any, data: Dataset, task: str, seed: int
) -> Any:
    """The parameters of one network, after a fixed number of steps."""
    epochs, split = EPOCHS[data.name], Split(data.train.x, {task: data.train.y[task]})
    rate = optax.cosine_onecycle_schedule(epochs * (len(split.x) // BATCH), RATE)
    return fit(
        *(train, start, lambda out, y: (loss(out["answer"], y[task]), {}), split),
        optimizer=optax.adamw(rate, weight_decay=1e-2),
        epochs=epochs,
        batch_size=BATCH,
        seed=seed,
        progress=False,
    )[0]
