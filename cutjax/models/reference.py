"""The default parent: a network that two cores train in a minute, or two when shared.

Few wide layers rather than many narrow ones: at batch 1 an operation costs some
microseconds whatever its width, and what a cut saves must not drown in that.
"""

from os import PathLike
from typing import Any

import optax

from cutjax.data.base import Dataset
from cutjax.fit import FitInfo, fit
from cutjax.losses import losses_for, summed
from cutjax.metrics import accuracy
from cutjax.models.resnet import MultiTaskResNet, eval_apply, init, train_apply

EPOCHS = 2
BATCH_SIZE = 64
LEARNING_RATE = 4e-3


def reference(dataset: Dataset) -> MultiTaskResNet:
    """The default model for the tasks of `dataset`: three stages of one block.

    Example:
        >>> from cutjax.data import digits_scenes
        >>> reference(digits_scenes(sizes={"train": 8})).widths
        (64, 96, 192)
    """
    return MultiTaskResNet(dataset.tasks, widths=(64, 96, 192), blocks=(1, 1, 1))


def train_reference(
    dataset: Dataset,
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    checkpoint: str | PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[MultiTaskResNet, dict[str, Any], FitInfo]:
    """Trains the default model with AdamW and a one-cycle learning rate.

    Args:
        dataset: data with labels by task; `validation` picks the epoch.
        seed: initial weights and order of the examples.
        epochs: passes over the training scenes.
        batch_size: examples per step.
        checkpoint: directory to resume from and write to, see `cutjax.fit.fit`.
        progress: show a progress bar.

    Returns:
        `(model, variables, info)`.
    """
    model = reference(dataset)
    apply = eval_apply(model)
    steps = epochs * (len(dataset.train.x) // batch_size)
    rate = optax.cosine_onecycle_schedule(steps, LEARNING_RATE)
    variables, info = fit(
        train_apply(model),
        init(model, dataset.train.x, seed),
        summed(losses_for(dataset)),
        dataset.train,
        optimizer=optax.adamw(rate, weight_decay=1e-2),
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        evaluate=lambda params: accuracy(apply, params, dataset.validation),
        checkpoint=checkpoint,
        settings={"epochs": epochs},
        progress=progress,
        label=dataset.name,
    )
    return model, variables, info
