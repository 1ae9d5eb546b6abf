"""A multi-task residual network in Flax Linen. Nothing in it knows about pruning."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

Variables = Mapping[str, Any]
AnyArray = Array | np.ndarray
Logits = dict[str, Float[Array, "n classes"]]


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a skip (He et al. 2016, basic block).

    Attributes:
        width: output channels.
        stride: of the first convolution and of the projection.
    """

    width: int
    stride: int = 1

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "n h w c"], train: bool = False
    ) -> Float[Array, "n h2 w2 c2"]:
        """Returns the block's output, projecting the skip where shapes differ."""
        strides = (self.stride, self.stride)
        y = nn.Conv(self.width, (3, 3), strides, use_bias=False, name="conv1")(x)
        y = nn.relu(_norm("norm1", train)(y))
        y = nn.Conv(self.width, (3, 3), use_bias=False, name="conv2")(y)
        y = _norm("norm2", train)(y)
        if x.shape != y.shape:
            x = nn.Conv(self.width, (1, 1), strides, use_bias=False, name="project")(x)
            x = _norm("norm_project", train)(x)
        return nn.relu(x + y)


class MultiTaskResNet(nn.Module):
    """One residual trunk, a global average pool, one linear head per task.

    Attributes:
        tasks: number of classes of each task, 0 for one number; its head is named
            `head_<task>`.
        widths: channels of each stage; every stage but the first halves the image.
        blocks: residual blocks of each stage.
        stem_stride: stride of the first convolution; 1 keeps small images whole.
    """

    tasks: Mapping[str, int]
    widths: Sequence[int] = (32, 64, 128)
    blocks: Sequence[int] = (2, 2, 2)
    stem_stride: int = 1

    @nn.compact
    def __call__(self, x: Float[AnyArray, "n h w c"], train: bool = False) -> Logits:
        """Returns the logits of every task, `[n, 1]` where it asks for a number.

        Args:
            x: images.
            train: normalise by the batch and update `batch_stats`.
        """
        if len(self.widths) != len(self.blocks):
            raise ValueError(
                f"MultiTaskResNet: {len(self.widths)} widths but {len(self.blocks)} "
                "entries in blocks; give one of each per stage"
            )
        strides = (self.stem_stride, self.stem_stride)
        x = nn.Conv(self.widths[0], (3, 3), strides, use_bias=False, name="stem")(x)
        x = nn.relu(_norm("norm_stem", train)(x))
        for i, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                x = Block(width, stride, name=f"stage{i + 1}_block{j + 1}")(x, train)
        x = x.mean((1, 2))
        return {t: nn.Dense(n or 1, name=f"head_{t}")(x) for t, n in self.tasks.items()}


def eval_apply(model: nn.Module) -> Callable[[Variables, AnyArray], Any]:
    """The model as the pure function `apply(variables, x) -> {task: logits}`.

    Call it once and keep the result: `jax.jit` caches by the identity of the function.
    """

    def apply(variables: Variables, x: AnyArray) -> Any:
        return model.apply(variables, x)

    return apply


def train_apply(
    model: nn.Module,
) -> Callable[[Variables, AnyArray], tuple[Any, dict[str, Any]]]:
    """The model in training: `apply(variables, x) -> (outputs, updates)`.

    `updates` holds replacements for top-level entries of `variables`: here
    `{"batch_stats": ...}`, which is what `cutjax.fit.fit` expects.
    """

    def apply(variables: Variables, x: AnyArray) -> tuple[Any, dict[str, Any]]:
        outputs, updates = model.apply(
            variables, x, train=True, mutable=["batch_stats"]
        )
        return outputs, dict(updates)

    return apply


def init(
    model: nn.Module, x: AnyArray | jax.ShapeDtypeStruct, seed: int = 0
) -> dict[str, Any]:
    """Fresh variables for images shaped like `x`; only shape and dtype of `x` count."""

    # Jitted: one compilation instead of one per operation.
    @jax.jit
    def make(key: Array) -> dict[str, Any]:
        return dict(model.init(key, jnp.zeros(x.shape, x.dtype)))

    return make(jax.random.key(seed))


def _norm(name: str, train: bool) -> nn.BatchNorm:
    # 0.9 rather than Flax's 0.99: the reference trains for a few hundred steps only.
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, name=name)
