"""The parents of the study: one per data set, trained to its plateau and kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import optax

from cutjax.data import Dataset
from cutjax.fit import fit
from cutjax.graph import Graph
from cutjax.losses import losses_for, summed
from cutjax.metrics import accuracy
from cutjax.models import MultiTaskResNet, eval_apply, init, train_apply
from cutjax.source import graph_of


class Recipe(NamedTuple):
    """A parent's architecture and training; `distil`: steps of a child's training."""

    widths: tuple[int, ...]
    stem_stride: int
    epochs: int
    batch_size: int
    rate: float
    distil: int


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


def parent(data: Dataset, folder: Path, *, progress: bool = True) -> Parent:
    """The parent of a data set, trained unless `folder` holds it already."""
    name = data.name.removesuffix("_scenes")
    recipe = RECIPES[name]
    blocks = (1,) * len(recipe.widths)
    model = MultiTaskResNet(data.tasks, recipe.widths, blocks, recipe.stem_stride)
    apply, trained = eval_apply(model), train_apply(model)
    losses = losses_for(data)
    params, info = train(recipe, model, data, folder, progress=progress)
    graph = graph_of(apply, params, data)
    return Parent(
        name, data, model, apply, trained, params, graph, losses, info.seconds
    )


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
