"""Convolutional nets in Linen: chains, residual streams, groups of channels."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from .base import Kept, Net, linen, normal, specimen


def conv(features: int, k: int = 3, s: int = 1, **kw: Any) -> nn.Conv:
    return nn.Conv(features, (k, k), (s, s), use_bias=False, **kw)


def norms(train: bool) -> Any:
    return partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)


class Vgg(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        bn = norms(train)
        for features in (6, 10):
            x = nn.relu(bn()(conv(features)(x)))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(bn()(nn.Dense(12)(x)))
        return nn.Dense(3)(x)


@specimen
def vgg() -> Net:
    return linen("vgg", Vgg(), normal(8, 8, 8, 3), train=True, expected=(6, 10, 12))


class Basic(nn.Module):
    features: int
    inner: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        bn = norms(train)
        y = nn.relu(bn()(conv(self.inner, s=self.stride)(x)))
        y = bn()(conv(self.features)(y))
        if self.stride > 1:
            x = bn()(conv(self.features, 1, self.stride)(x))
        return nn.relu(x + y)


class ResNet18(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        x = nn.relu(norms(train)()(conv(3)(x)))
        for stage, width in enumerate((3, 4, 5, 6)):
            x = Basic(width, width, 1 + (stage > 0))(x, train)
            x = Basic(width, width)(x, train)
        x = x.mean((1, 2))
        return {"age": nn.Dense(3)(x), "smile": nn.Dense(2)(x)}


@specimen
def resnet18() -> Net:
    expected = tuple(sorted(3 * (3, 4, 5, 6)))
    x, tasks = normal(2, 8, 8, 3), ("age", "smile")
    return linen("resnet18", ResNet18(), x, train=True, expected=expected, tasks=tasks)


class PreAct(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        bn = norms(train)
        x = conv(6)(x)
        for width, inner, stride in ((6, 5, 1), (10, 7, 2)):
            y = nn.relu(bn()(x))
            if stride > 1:
                x = conv(width, 1, stride)(y)
            y = conv(inner, s=stride)(y)
            x = x + conv(width)(nn.relu(bn()(y)))
        return nn.Dense(3)(nn.relu(bn()(x)).mean((1, 2)))


@specimen
def preact_resnet() -> Net:
    x = normal(2, 6, 6, 3)
    return linen("preact_resnet", PreAct(), x, train=True, expected=(5, 6, 7, 10))


class OptionA(nn.Module):
    """A shortcut of zeros: 4 channels become 3 zeros, the 4, 3 zeros."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        bn = norms(train)
        x = nn.relu(bn()(conv(4)(x)))
        x = Basic(4, 5)(x, train)
        y = nn.relu(bn()(conv(7, s=2)(x)))
        y = bn()(conv(10)(y))
        x = jnp.pad(x[:, ::2, ::2, :], ((0, 0), (0, 0), (0, 0), (3, 3)))
        return nn.Dense(3)(nn.relu(x + y).mean((1, 2)))


@specimen
def option_a() -> Net:
    x = normal(2, 6, 6, 3)
    return linen("option_a", OptionA(), x, train=True, expected=(3, 3, 4, 5, 7))


class Bottleneck(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        bn = norms(train)
        x = nn.relu(bn()(conv(8)(x)))
        for block in range(2):
            y = nn.relu(bn()(conv(4, 1)(x)))
            y = nn.relu(bn()(conv(5)(y)))
            y = bn()(conv(12, 1)(y))
            x = nn.relu(y + (bn()(conv(12, 1)(x)) if block == 0 else x))
        return nn.Dense(3)(x.mean((1, 2)))


@specimen
def bottleneck() -> Net:
    x = normal(2, 5, 5, 3)
    return linen("bottleneck", Bottleneck(), x, expected=(4, 4, 5, 5, 8, 12))


def squeeze(x: jax.Array, n: int) -> jax.Array:
    """Squeeze-and-excite."""
    s = nn.relu(nn.Dense(n)(x.mean((1, 2))))
    return x * nn.sigmoid(nn.Dense(x.shape[-1])(s))[:, None, None, :]


class Mobile(nn.Module):
    """An inverted residual with squeeze-and-excite; then channel multiplier 2."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        bn = norms(train)
        x = nn.hard_swish(bn()(conv(6)(x)))
        y = nn.relu6(bn()(conv(11, 1)(x)))
        y = nn.relu6(bn()(conv(11, feature_group_count=11)(y)))
        x = x + bn()(conv(6, 1)(squeeze(y, 3)))
        y = nn.relu6(bn()(conv(12, s=2, feature_group_count=6)(x)))
        x = bn()(conv(8, 1)(y))
        return nn.Dense(3)(x.mean((1, 2)))


@specimen
def mobilenet() -> Net:
    x = normal(2, 6, 6, 3)
    return linen("mobilenet", Mobile(), x, train=True, expected=(2, 3, 6, 8, 11))


class SqueezeExcite(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        x = x + squeeze(nn.Conv(6, (3, 3))(x), 4)
        return nn.Dense(3)(x.max((1, 2)))


@specimen
def squeeze_excite() -> Net:
    return linen("squeeze_excite", SqueezeExcite(), normal(2, 5, 5, 3), expected=(4, 6))


class ResNeXt(nn.Module):
    """Three groups, 4 channels in and 5 out: all three numbers can be cut."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        bn = norms(train)
        x = nn.relu(bn()(conv(8)(x)))
        y = nn.relu(bn()(conv(12, 1)(x)))
        y = nn.relu(bn()(conv(15, feature_group_count=3)(y)))
        x = nn.relu(x + bn()(conv(8, 1)(y)))
        return nn.Dense(2)(x.mean((1, 2)))


@specimen
def resnext() -> Net:
    x = normal(2, 5, 5, 3)
    return linen("resnext", ResNeXt(), x, train=True, expected=(3, 4, 5, 8))


class Primes(nn.Module):
    """Prime widths: a full size is recognised wherever it appears in a program."""

    widths: tuple[int, int, int, int] = (13, 17, 19, 23)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a, b, c, d = self.widths
        x = nn.relu(norms(False)()(conv(a)(x)))
        x = x + nn.relu(conv(a, feature_group_count=a)(x))
        x = nn.max_pool(nn.relu(conv(b)(x)), (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.LayerNorm()(nn.Dense(c)(x))
        x = jnp.concatenate([nn.relu(nn.Dense(d)(x)), x], -1)
        return nn.Dense(3)(x)


@specimen
def primes() -> Net:
    def narrow(kept: Kept) -> Any:
        convs = [len(kept(f"params/Conv_{i}/kernel", 3)) for i in (0, 2)]
        denses = [len(kept(f"params/Dense_{i}/kernel", 1)) for i in (0, 1)]
        return Primes((*convs, *denses)).apply

    known = {"exact": False, "narrow": narrow}
    sizes = (13, 17, 19, 23)
    return linen("primes", Primes(), normal(2, 4, 4, 3), expected=sizes, **known)


class DropoutNet(nn.Module):
    """Random bits take the shape that is left; the statistics before them do not."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.relu(norms(train)()(conv(7)(x)))
        x = nn.relu(norms(train)()(conv(9)(x))).mean((1, 2))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3)(x)


@specimen
def dropout_batchnorm() -> Net:
    x = normal(4, 5, 5, 3)
    known = {"expected": (7, 9), "train_exact": False}
    return linen(
        "dropout_batchnorm", DropoutNet(), x, train=True, dropout=True, **known
    )
