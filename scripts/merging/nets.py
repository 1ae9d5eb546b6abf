"""The networks: one for the classes 0 to 4, one for 5 to 9, of one architecture."""

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.serialization import msgpack_restore
from studies.parents import write

import cutjax as cj
from cutjax.data import Split, batches, take
from cutjax.fit import fit
from cutjax.merge import Network
from cutjax.models import MultiTaskResNet, eval_apply, init, train_apply
from merging.data import Halves

CLASSES = {"low": range(5), "high": range(5, 10)}
BATCH, RATE = {"mnist": 64, "cifar": 128}, 3e-3


class Plain(nn.Module):
    """Four 3x3 convolutions with BatchNorm, two poolings, one head of five classes."""

    widths: tuple[int, ...] = (32, 32, 64, 64)

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> dict[str, Any]:
        """Logits `[n, 5]` of images `[n, 28, 28, 1]`."""
        for number, width in enumerate(self.widths):
            x = nn.Conv(width, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            if number % 2:
                x = nn.max_pool(x, (2, 2), (2, 2))
        return {"label": nn.Dense(5)(x.mean((1, 2)))}


MODELS: dict[str, nn.Module] = {
    "mnist": Plain(),
    "cifar": MultiTaskResNet({"label": 5}, (64, 128, 256), (1, 1, 1), stem_stride=2),
}
EPOCHS = {"mnist": 12, "cifar": 4}


class Pair(NamedTuple):
    """Both networks, their functions in train mode, and the data."""

    networks: dict[str, Network]
    trains: dict[str, Network]
    data: Halves

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
    labels = split.y["label"]
    chosen = take(split, np.flatnonzero(np.isin(labels, classes)))
    return Split(chosen.x, {"label": chosen.y["label"] - classes.start})


def pair(data: Halves, seed: int, kept: Path) -> Pair:
    """Both networks, trained from different starts unless `kept` holds them.

    Args:
        data: images with a task `label` of ten classes.
        seed: of the starts and of the order of examples.
        kept: folder of trained networks.
    """
    model = MODELS[data.name]
    apply, train = eval_apply(model), train_apply(model)
    nets, trains = {}, {}
    for number, (name, classes) in enumerate(CLASSES.items()):
        file = kept / f"{data.name}-{seed}-{name}.msgpack"
        if not file.exists():
            write(file, trained(model, data, of(data.train, classes), seed, number))
        found = msgpack_restore(file.read_bytes())
        params = jax.tree.map(jnp.asarray, found)
        graph = nets["low"].graph if nets else cj.trace(apply, params, data.train.x[:1])
        nets[name] = Network(apply, params, graph)
        trains[name] = Network(train, params, graph)
    return Pair(nets, trains, data)


def trained(
    model: nn.Module, data: Halves, split: Split, seed: int, number: int
) -> Any:
    """The parameters of one network."""
    batch, epochs = BATCH[data.name], EPOCHS[data.name]

    def loss(out: Any, y: Any) -> Any:
        cross = optax.softmax_cross_entropy_with_integer_labels
        return cross(out["label"], y["label"]).mean(), {}

    steps = epochs * (len(split.x) // batch)
    return fit(
        *(train_apply(model), init(model, data.train.x, 2 * seed + number)),
        *(loss, split),
        optimizer=optax.adamw(optax.cosine_onecycle_schedule(steps, RATE)),
        epochs=epochs,
        batch_size=batch,
        seed=seed,
        progress=False,
    )[0]
