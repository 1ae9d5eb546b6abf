"""Haiku's own networks and recurrent cores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from .base import Apply, Built, halved, normal, published

PACKAGE = "dm-haiku"


def build(net: Callable[[Any, int], Callable], *inputs: Any, **training: bool) -> Built:
    """A Haiku network: `net(haiku, divisor)` makes the function of the inputs."""
    import haiku as hk

    def made(divisor: int) -> tuple[Apply, Any]:
        pure = hk.transform_with_state(lambda *xs: net(hk, divisor)(*xs))
        # Train mode makes the statistics; evaluation only reads them.
        with_statistics = hk.transform_with_state(
            lambda *xs: net(hk, divisor)(*xs, **training)
        )
        params, state = jax.eval_shape(with_statistics.init, jax.random.key(0), *inputs)

        def apply(variables: Any, *xs: Any) -> Any:
            out, _ = pure.apply(variables["params"], variables["state"], None, *xs)
            return out

        return apply, {"params": params, "state": state}

    return halved(made, inputs)


IMAGE = normal(2, 16, 16, 3)


def resnet(kind: str, **options: Any) -> Built:
    """A residual net of `kind`, narrow, one or two blocks per group."""

    def net(hk: Any, divisor: int) -> Callable:
        widths = tuple(n // divisor for n in (16, 24, 32, 40))
        fields = {"num_classes": 5, "channels_per_group": widths} | options
        fields["initial_conv_config"] = {
            "kernel_shape": 3,
            "output_channels": 12 // divisor,
        }
        model = hk.nets.ResNet(**fields)
        return lambda x, is_training=False: model(x, is_training)

    return build(net, IMAGE, is_training=True)


@published("ResNet v1 basic", PACKAGE)
def resnet_v1() -> Built:
    return resnet("basic", blocks_per_group=(2, 1, 1, 1), bottleneck=False)


@published("ResNet v2 basic", PACKAGE)
def resnet_v2() -> Built:
    blocks = {"blocks_per_group": (1, 2, 1, 1), "resnet_v2": True}
    return resnet("basic", bottleneck=False, **blocks)


@published("ResNet v1 bottleneck", PACKAGE)
def resnet_bottleneck() -> Built:
    return resnet("bottleneck", blocks_per_group=(2, 1, 1, 1))


@published("ResNet v2 bottleneck", PACKAGE)
def resnet_v2_bottleneck() -> Built:
    return resnet("bottleneck", blocks_per_group=(1, 1, 2, 1), resnet_v2=True)


@published("MobileNet v1", PACKAGE)
def mobilenet() -> Built:
    def net(hk: Any, divisor: int) -> Callable:
        model = hk.nets.MobileNetV1(
            strides=(1, 2, 1),
            channels=tuple(n // divisor for n in (12, 20, 24)),
            num_classes=5,
        )
        return lambda x, is_training=False: model(x, is_training)

    return build(net, IMAGE, is_training=True)


@published("MLP", PACKAGE)
def mlp() -> Built:
    def net(hk: Any, divisor: int) -> Callable:
        return hk.nets.MLP([20 // divisor, 14 // divisor, 3])

    return build(net, normal(4, 7))


@published("MLP autoencoder by reverse", PACKAGE)
def mlp_reverse() -> Built:
    def net(hk: Any, divisor: int) -> Callable:
        model = hk.nets.MLP([20 // divisor, 14 // divisor, 6 // divisor])

        def both(x: Any) -> Any:
            code = model(x)
            return model.reverse()(code)

        return both

    return build(net, normal(4, 7))


def unrolled(core: Callable[[Any, int], Any], static: bool = False) -> Built:
    """A recurrent core over five steps, read by a linear layer."""

    def net(hk: Any, divisor: int) -> Callable:
        def run(x: Any) -> Any:
            cell = core(hk, divisor)
            unroll = hk.static_unroll if static else hk.dynamic_unroll
            out, _ = unroll(cell, x, cell.initial_state(x.shape[1]))
            return hk.Linear(3)(out)

        return run

    return build(net, normal(5, 2, 7))


@published("LSTM", PACKAGE)
def lstm() -> Built:
    return unrolled(lambda hk, d: hk.LSTM(12 // d))


@published("LSTM unrolled", PACKAGE)
def lstm_static() -> Built:
    return unrolled(lambda hk, d: hk.LSTM(12 // d), static=True)


@published("GRU", PACKAGE)
def gru() -> Built:
    return unrolled(lambda hk, d: hk.GRU(12 // d))


@published("Vanilla RNN", PACKAGE)
def rnn() -> Built:
    return unrolled(lambda hk, d: hk.VanillaRNN(12 // d))


@published("Deep RNN with skips", PACKAGE)
def deep_rnn() -> Built:
    return unrolled(
        lambda hk, d: hk.deep_rnn_with_skip_connections(
            [hk.LSTM(12 // d), hk.GRU(10 // d)]
        )
    )


@published("Convolutional LSTM", PACKAGE)
def conv_lstm() -> Built:
    def net(hk: Any, divisor: int) -> Callable:
        def run(x: Any) -> Any:
            core = hk.Conv2DLSTM((6, 6), 8 // divisor, (3, 3))
            out, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))
            return hk.Linear(3)(out)

        return run

    return build(net, normal(3, 2, 6, 6, 4))


@published("Multi-head attention", PACKAGE)
def attention() -> Built:
    def net(hk: Any, divisor: int) -> Callable:
        def run(x: Any) -> Any:
            init = hk.initializers.VarianceScaling(1.0)
            mix = hk.MultiHeadAttention(
                4 // divisor, 6, w_init=init, model_size=20 // divisor
            )
            x = hk.Linear(20 // divisor)(x)
            x = x + mix(x, x, x)
            return hk.Linear(3)(hk.LayerNorm(-1, True, True)(x))

        return run

    return build(net, normal(2, 5, 7))
