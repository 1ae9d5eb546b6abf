"""The parents of the study: one per data set, trained to its plateau and kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.serialization import msgpack_restore, msgpack_serialize

from cutjax.data import Dataset
from cutjax.fit import fit
from cutjax.graph import Graph
from cutjax.losses import losses_for, summed
from cutjax.metrics import accuracy
from cutjax.models import MultiTaskResNet, eval_apply, init, train_apply
from cutjax.source import graph_of


class Recipe(NamedTuple):
    """A parent's architecture and training; `distil`: steps of a child's training.

    `blocks` of each stage.
    """

    widths: tuple[int, ...]
    stem_stride: int
    epochs: int
    batch_size: int
    rate: float
    distil: int
    blocks: int = 1


RECIPES = {
    "set_cards": Recipe((24, 64, 160), 2, 8, 64, 4e-3, 115),
    "morpho": Recipe((16, 32, 64), 1, 12, 64, 6e-3, 93),
    "digits": Recipe((64, 96, 192), 1, 2, 64, 4e-3, 37),
}


class Parent(NamedTuple):
    """A trained parent and what is derived from it once."""

    name: str
    data: Dataset
    model: MultiTaskResNet
    apply: Callable[..., Any]
    train_apply: Callable[..., Any]
    params: Any
    graph: Graph
    losses: dict[str, Callable[..., Any]]
    seconds: float


def parent(
    data: Dataset,
    folder: Path,
    *,
    recipe: Recipe | None = None,
    progress: bool = True,
) -> Parent:
    """The parent of a data set, trained unless `folder` holds it already."""
    name = data.name.removesuffix("_scenes")
    recipe = recipe or RECIPES[name]
    blocks = (recipe.blocks,) * len(recipe.widths)
    model = MultiTaskResNet(data.tasks, recipe.widths, blocks, recipe.stem_stride)
    apply, trained = eval_apply(model), train_apply(model)
    losses = losses_for(data)
    kept = folder / "parent.msgpack"
    if not kept.exists():
        params, info = train(recipe, model, data, folder, progress=progress)
        write(kept, {"recipe": repr(recipe), "seconds": info.seconds, "params": params})
    found = msgpack_restore(kept.read_bytes())
    if found["recipe"] != repr(recipe):
        raise ValueError(f"{kept} is of {found['recipe']}, not {recipe}; delete it")
    params = jax.tree.map(jnp.asarray, found["params"])
    graph = graph_of(apply, params, data)
    return Parent(
        name, data, model, apply, trained, params, graph, losses, found["seconds"]
    )


def write(path: Path, tree: Any) -> None:
    """A pytree in a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(msgpack_serialize(jax.tree.map(_plain, tree)))
    part.rename(path)


def _plain(leaf: Any) -> Any:
    return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf


def steps(name: str, examples: int) -> int:
    """How many steps a parent was trained for."""
    recipe = RECIPES[name]
    return recipe.epochs * (examples // recipe.batch_size)


def train(
    recipe: Recipe,
    model: MultiTaskResNet,
    data: Dataset,
    folder: Path,
    *,
    progress: bool,
) -> Any:
    """Train with AdamW and a one-cycle learning rate; validation picks the epoch."""
    apply = eval_apply(model)
    number = recipe.epochs * (len(data.train.x) // recipe.batch_size)
    rate = optax.cosine_onecycle_schedule(number, recipe.rate)
    return fit(
        train_apply(model),
        init(model, data.train.x),
        summed(losses_for(data)),
        data.train,
        optimizer=optax.adamw(rate, weight_decay=1e-2),
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        evaluate=lambda params: accuracy(apply, params, data.validation),
        checkpoint=folder,
        progress=progress,
        label=data.name,
    )
