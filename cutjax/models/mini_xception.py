"""Mini-XCEPTION, a small face classifier of separable convolutions, in Flax Linen.

All is said as Keras says it: names of layers, so that published weights find their
place, "SAME" as the padding, epsilon and momentum of BatchNorm.
"""

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from cutjax.models.resnet import AnyArray


class SeparableConv(nn.Module):
    """A 3x3 convolution of each channel alone, then a 1x1 one across; no bias.

    Attributes:
        width: output channels.
    """

    width: int

    @nn.compact
    def __call__(self, x: Float[AnyArray, "n h w c"]) -> Float[Array, "n h w c2"]:
        """Returns features of the same height and width.

        Args:
            x: images of features.
        """
        n = x.shape[-1]
        alone = nn.Conv(
            n, (3, 3), feature_group_count=n, use_bias=False, name="depthwise"
        )
        return nn.Conv(self.width, (1, 1), use_bias=False, name="pointwise")(alone(x))


class MiniXception(nn.Module):
    """Arriaga et al.'s network for grey 64x64 images, scaled to -1 ... 1.

    Two plain convolutions, residual blocks of two separable ones that halve the image,
    and a convolution to one channel per class, averaged over the image. Names are those
    of the published Keras weights; `cutjax.models.keras.from_keras` reads them.

    Attributes:
        task: the name of what is classified.
        classes: of it.
        stem: channels of the two convolutions at the start.
        widths: channels of each residual block.

    Example:
        >>> import numpy as np
        >>> from cutjax.models import init
        >>> model = MiniXception(task="emotion", classes=7, widths=(16, 32))
        >>> x = np.zeros((2, 20, 20, 1), np.float32)
        >>> model.apply(init(model, x), x)["emotion"].shape
        (2, 7)

    Reference:
        Arriaga, Valdenegro-Toro & Plöger, Real-time Convolutional Neural Networks for
        Emotion and Gender Classification, 2017, figure 2.
    """

    task: str
    classes: int
    stem: int = 8
    widths: tuple[int, ...] = (16, 32, 64, 128)

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "n h w c"], train: bool = False
    ) -> dict[str, Float[Array, "n classes"]]:
        """Returns `{task: logits}`; Keras' softmax of them is left to whoever asks.

        Args:
            x: images, `2 (pixels / 255 - 0.5)`.
            train: normalise by the batch and update `batch_stats`.
        """
        for i in (1, 2):
            stem = _conv(self.stem, i, (3, 3), padding="VALID")
            x = nn.relu(_norm(i, train)(stem(x)))
        for i, width in enumerate(self.widths, 1):
            x = _residual(x, i, width, train)
        number = len(self.widths) + 3
        x = _conv(self.classes, number, (3, 3), use_bias=True)(x)
        return {self.task: x.mean((1, 2))}


def _residual(x: AnyArray, i: int, width: int, train: bool) -> jax.Array:
    """Block `i`. Keras counted the norm of the skip first, though it comes last."""
    y = SeparableConv(width, name=f"separable_conv2d_{2 * i - 1}")(x)
    y = nn.relu(_norm(3 * i + 1, train)(y))
    y = SeparableConv(width, name=f"separable_conv2d_{2 * i}")(y)
    y = nn.max_pool(_norm(3 * i + 2, train)(y), (3, 3), (2, 2), padding="SAME")
    skip = _norm(3 * i, train)(_conv(width, i + 2, (1, 1), strides=(2, 2))(x))
    return skip + y


def _conv(
    width: int,
    number: int,
    size: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    padding: str = "SAME",
    use_bias: bool = False,
) -> nn.Conv:
    name = f"conv2d_{number}"
    return nn.Conv(width, size, strides, padding, use_bias=use_bias, name=name)


def _norm(number: int, train: bool) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.99,
        epsilon=1e-3,
        name=f"batch_normalization_{number}",
    )
