"""The residual networks for CIFAR-10 with 20, 32, 44, 56 or 110 layers, in Flax Linen.

The skip where widths change has no parameters: every second pixel, and channels of
zeros on both sides. So all three stages share one residual stream, of which the later
stages have more.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

AnyArray = Array | np.ndarray

SAME = ((1, 1), (1, 1))
"""Not "SAME", which with a stride of 2 pads on one side only."""


class CifarBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a skip without parameters.

    Attributes:
        width: output channels, at least those of the input.
        stride: of the first convolution and of the skip.
    """

    width: int
    stride: int = 1

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "n h w c"], train: bool = False
    ) -> Float[Array, "n h2 w2 c2"]:
        """Returns the block's output; new channels of the skip are zeros.

        Args:
            x: images of features.
            train: normalise by the batch and update `batch_stats`.
        """
        y = _conv(self.width, "conv1", self.stride)(x)
        y = nn.relu(_norm("bn1", train)(y))
        y = _norm("bn2", train)(_conv(self.width, "conv2")(y))
        more = self.width - x.shape[-1]
        if self.stride > 1 or more:
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)))
        return nn.relu(x + y)


class CifarResNet(nn.Module):
    """He et al.'s network for 32x32 images: `6 n + 2` layers in three stages.

    Names are those of the published PyTorch weights, `layer1_0/conv1/kernel` for
    `layer1.0.conv1.weight`; `cutjax.models.importers.from_torch` reads them.

    Attributes:
        blocks: residual blocks of each stage: 3 for ResNet-20, 9 for ResNet-56.
        classes: outputs of the task `label`.
        widths: channels of each stage; every stage but the first halves the image.

    Example:
        >>> from cutjax.models import init
        >>> model = CifarResNet(blocks=1, widths=(4, 8, 16))
        >>> x = np.zeros((2, 8, 8, 3), np.float32)
        >>> model.apply(init(model, x), x)["label"].shape
        (2, 10)

    Reference:
        He, Zhang, Ren & Sun, Deep Residual Learning for Image Recognition, CVPR 2016,
        section 4.2, shortcuts of option A.
    """

    blocks: int = 3
    classes: int = 10
    widths: tuple[int, ...] = (16, 32, 64)

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "n h w c"], train: bool = False
    ) -> dict[str, Float[Array, "n classes"]]:
        """Returns `{"label": logits}`.

        Args:
            x: images, standardised.
            train: normalise by the batch and update `batch_stats`.
        """
        x = nn.relu(_norm("bn1", train)(_conv(self.widths[0], "conv1")(x)))
        for i, width in enumerate(self.widths):
            for j in range(self.blocks):
                stride = 2 if i > 0 and j == 0 else 1
                x = CifarBlock(width, stride, name=f"layer{i + 1}_{j}")(x, train)
        return {"label": nn.Dense(self.classes, name="linear")(x.mean((1, 2)))}


def _conv(width: int, name: str, stride: int = 1) -> nn.Conv:
    strides = (stride, stride)
    return nn.Conv(width, (3, 3), strides, padding=SAME, use_bias=False, name=name)


def _norm(name: str, train: bool) -> nn.BatchNorm:
    # PyTorch's momentum of 0.1 and epsilon, with which published weights were made.
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, name=name
    )
