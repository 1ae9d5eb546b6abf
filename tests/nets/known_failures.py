"""What Torch-Pruning's issue tracker shows to go wrong, rebuilt in JAX.

Its issue 519 is the specimen `llama`, Swin's windows are `swin`, RAFT's volume is
`correlation`, channel shuffles are in `links`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from .base import Net, linen, normal, specimen, tree
from .conv import conv
from .plain import dense, layer


class Masked(nn.Module):
    """A map of one channel multiplies all channels, for both tasks."""

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        x = nn.relu(nn.Conv(7, (3, 3))(x))
        where = nn.sigmoid(nn.Conv(1, (1, 1))(nn.relu(nn.Conv(4, (3, 3))(x))))
        y = nn.relu(nn.Conv(6, (3, 3))(x)) * where
        return {"kind": nn.Dense(3)(y.mean((1, 2))), "parts": nn.Conv(2, (1, 1))(y)}


@specimen
def one_channel_mask() -> Net:
    """Issue 510: the mask's one channel ties nothing; stem 7, mask's 4, maps 6."""
    x, tasks = normal(2, 4, 4, 3), ("kind", "parts")
    return linen("one_channel_mask", Masked(), x, expected=(4, 6, 7), tasks=tasks)


@specimen
def data_matmul() -> Net:
    """Issue 188: two tensors that both depend on data, multiplied batch by batch.

    Non-local block by `@`: theta and phi share 5; g and the way back 4; stream 6. Then
    bilinear pooling: 7 channels of one branch times 3 of another, flattened.
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["stem"], x)
        near = (x @ p["theta"]) @ (x @ p["phi"]).swapaxes(1, 2) / x.shape[1]
        x = x + (near @ (x @ p["g"])) @ p["back"]
        a, b = dense(p["left"], x), jnp.tanh(dense(p["right"], x))
        pooled = (a.swapaxes(1, 2) @ b).reshape(x.shape[0], -1)
        return dense(p["head"], pooled)

    params = tree(
        stem=layer(3, 6),
        theta=(6, 5),
        phi=(6, 5),
        g=(6, 4),
        back=(4, 6),
        left=layer(6, 7),
        right=layer(6, 3),
        head=layer(21, 2),
    )
    known = {"by_weights": False}
    x = normal(2, 4, 3)
    return Net("data_matmul", apply, params, (x,), (3, 4, 5, 6, 7), **known)


@specimen
def gram() -> Net:
    """A Gram matrix of features, flattened: the head's rows are channels x channels.

    One group of 5 sits twice in the same axis of 25; before it 4.
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["last"], jax.nn.relu(dense(p["first"], x)))
        matrix = jnp.einsum("bnc,bnd->bcd", x, x) / x.shape[1]
        return dense(p["head"], matrix.reshape(x.shape[0], -1))

    params = tree(first=layer(3, 4), last=layer(4, 5), head=layer(25, 2))
    known = {"by_weights": False, "permutable": False}
    return Net("gram", apply, params, (normal(2, 4, 3),), (4, 5), **known)


class Grown(nn.Module):
    """Concatenations that feed grouped convolutions, whose outputs are joined again."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(conv(6)(x))
        for width in (6, 9):
            y = conv(width, feature_group_count=3)(nn.relu(conv(width, 1)(x)))
            x = nn.relu(jnp.concatenate([x, y], axis=-1))
        y = conv(x.shape[-1], feature_group_count=x.shape[-1])(x)
        return nn.Dense(3)(nn.relu(y).mean((1, 2)))


@specimen
def grown() -> Net:
    """Issue 417: there a higher ratio suddenly gave a larger net.

    The stem 6; then 3 groups of 2 channels in and 2 out, 3 of 3 in and 3 out: how many
    groups, how many go in, how many come out are three groups each.
    """
    sizes = (2, 2, 3, 3, 3, 3, 6)
    x = normal(2, 4, 4, 3)
    return linen("grown", Grown(), x, expected=sizes)
