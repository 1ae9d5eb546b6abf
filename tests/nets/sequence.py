"""Sequences without attention: recurrences, state spaces, convolutions in time."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from .base import Net, linen, normal, specimen, tree
from .plain import dense, layer


def recur(decay: jax.Array, x: jax.Array) -> jax.Array:
    """h_t = decay_t h_(t-1) + x_t along axis 1, in parallel."""

    def combine(left: Any, right: Any) -> Any:
        return left[0] * right[0], right[0] * left[1] + right[1]

    return lax.associative_scan(combine, (decay, x), axis=1)[1]


@specimen
def linear_recurrence() -> Net:
    """A gated real recurrence (minGRU): state 5, embedding 6; time is the input's."""

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["embed"], x)
        z = jax.nn.sigmoid(dense(p["gate"], x))
        h = recur(1 - z, z * dense(p["state"], x))
        return dense(p["head"], h)

    params = tree(
        embed=layer(3, 6), gate=layer(6, 5), state=layer(6, 5), head=layer(5, 2)
    )
    return Net("linear_recurrence", apply, params, (normal(2, 4, 3),), (5, 6))


@specimen
def complex_recurrence() -> Net:
    """LRU: a complex diagonal state (5) between real maps; stream 6.

    Nothing mixes the states: a state that is cut takes its eigenvalue, its row and its
    column with it, complex or not.
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["embed"], x)
        eigen = jnp.exp(lax.complex(-jnp.exp(p["decay"]), p["angle"]))
        drive = lax.complex(x @ p["b_re"], x @ p["b_im"])
        h = recur(jnp.broadcast_to(eigen, drive.shape), drive)
        y = h.real @ p["c_re"] - h.imag @ p["c_im"]
        return dense(p["head"], x + jax.nn.gelu(y))

    params = tree(
        embed=layer(3, 6),
        decay=(5,),
        angle=(5,),
        b_re=(6, 5),
        b_im=(6, 5),
        c_re=(5, 6),
        c_im=(5, 6),
        head=layer(6, 2),
    )
    known = {"by_weights": False}
    x = normal(2, 4, 3)
    return Net("complex_recurrence", apply, params, (x,), (5, 6), **known)


@specimen
def mamba() -> Net:
    """Selective scan: stream 6, inner 5, state 3, rank of the step size 4.

    One kernel makes inner channels and their gates; another makes the step's rank, the
    writing and the reading vectors (4, 3, 3), of which the last two are one group: they
    meet in the state.
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["embed"], x)
        u, gate = jnp.split(x @ p["into"], 2, axis=-1)
        padded = jnp.pad(u, ((0, 0), (2, 0), (0, 0)))
        t = u.shape[1]
        u = sum(padded[:, i : i + t] * p["conv"][i] for i in range(3))
        u = jax.nn.silu(u)
        states = p["log_decay"].shape[1]
        rank = p["step"]["kernel"].shape[0]
        step, write, read = jnp.split(u @ p["select"], (rank, rank + states), axis=-1)
        step = jax.nn.softplus(dense(p["step"], step))
        decay = jnp.exp(-step[..., None] * jnp.exp(p["log_decay"]))
        h = recur(decay, (step * u)[..., None] * write[:, :, None, :])
        y = jnp.einsum("btds,bts->btd", h, read) + p["skip"] * u
        return dense(p["head"], x + (y * jax.nn.silu(gate)) @ p["out"])

    params = tree(
        into=(6, 10),
        embed=layer(2, 6),
        conv=(3, 5),
        select=(5, 4 + 3 + 3),
        step=layer(4, 5),
        log_decay=(5, 3),
        skip=(5,),
        out=(5, 6),
        head=layer(6, 2),
    )
    known = {"by_weights": False}
    return Net("mamba", apply, params, (normal(2, 4, 2),), (3, 4, 5, 6), **known)


@specimen
def fft_convolution() -> Net:
    """S4D as one long convolution: the transform runs along time, channels go free.

    Channels 5 each have 3 states; what is transformed is time, the input's.
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x, n = dense(p["embed"], x), x.shape[1]
        at = jnp.arange(n)[:, None, None]
        decay = jnp.exp(-jnp.exp(p["log_decay"]) * at)
        kernel = jnp.einsum("ths,hs->th", decay, p["weight"])
        spectra = jnp.fft.rfft(x, 2 * n, axis=1) * jnp.fft.rfft(kernel, 2 * n, axis=0)
        y = jnp.fft.irfft(spectra, 2 * n, axis=1)[:, :n] + p["skip"] * x
        return dense(p["head"], jax.nn.gelu(y))

    params = tree(
        embed=layer(4, 5),
        log_decay=(5, 3),
        weight=(5, 3),
        skip=(5,),
        head=layer(5, 2),
    )
    known = {"by_weights": False}
    return Net("fft_convolution", apply, params, (normal(2, 4, 4),), (3, 5), **known)


@specimen
def fnet() -> Net:
    """A Fourier transform over tokens and channels keeps the stream; hidden 7."""

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["embed"], x)
        x = x + jnp.fft.fft2(x, axes=(1, 2)).real / 8
        x = x + dense(p["mlp2"], jax.nn.gelu(dense(p["mlp1"], x)))
        return dense(p["head"], x)

    params = tree(
        embed=layer(3, 6), mlp1=layer(6, 7), mlp2=layer(7, 6), head=layer(6, 2)
    )
    return Net("fnet", apply, params, (normal(2, 4, 3),), (7,))


@specimen
def linear_attention() -> Net:
    """Causal linear attention: outer products of keys and values, summed up in time.

    Heads 2, keys 3, values 4, stream 6; the running sum keeps time whole.
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["embed"], x)
        q, k = (jax.nn.relu(jnp.einsum("btd,dhw->bthw", x, p[n])) for n in "qk")
        v = jnp.einsum("btd,dhv->bthv", x, p["v"])
        memory = jnp.cumsum(jnp.einsum("bthw,bthv->bthwv", k, v), axis=1)
        y = jnp.einsum("bthw,bthwv->bthv", q, memory)
        y = y / (1 + jnp.einsum("bthw,bthw->bth", q, jnp.cumsum(k, 1))[..., None])
        return dense(p["head"], x + jnp.einsum("bthv,hvd->btd", y, p["o"]))

    params = tree(
        embed=layer(5, 6),
        q=(6, 2, 3),
        k=(6, 2, 3),
        v=(6, 2, 4),
        o=(2, 4, 6),
        head=layer(6, 2),
    )
    known = {"by_weights": False}
    x = normal(2, 4, 5)
    return Net("linear_attention", apply, params, (x,), (2, 3, 4, 6), **known)


class WaveNet(nn.Module):
    """Causal dilated convolutions, gated; the skips are summed."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, skips = nn.Conv(6, (1,))(x), 0.0
        for dilation, gated in ((1, 4), (2, 5)):
            kw = {"padding": "CAUSAL", "kernel_dilation": (dilation,)}
            y = nn.Conv(2 * gated, (2,), **kw)(x)
            a, b = jnp.split(y, 2, axis=-1)
            y = nn.tanh(a) * nn.sigmoid(b)
            x = x + nn.Conv(x.shape[-1], (1,))(y)
            skips = skips + nn.Conv(7, (1,))(y)
        return nn.Conv(3, (1,))(nn.relu(skips))


@specimen
def wavenet() -> Net:
    """Stream 6, gates 4 and 5 (halves of a kernel alike), skips 7.

    The last block's way back into the stream is dead: what it holds is 6 and 5 too.
    """
    return linen("wavenet", WaveNet(), normal(2, 6, 2), expected=(4, 5, 6, 7))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first, last = (jnp.zeros((x.shape[0], n), x.dtype) for n in (5, 4))
        x = nn.RNN(nn.GRUCell(5))(x, initial_carry=first)
        back = nn.RNN(nn.GRUCell(4), reverse=True, keep_order=True)
        x = back(x, initial_carry=last)
        return nn.Dense(2)(x)


@specimen
def gru() -> Net:
    """Two recurrent layers, the second backwards: states 5 and 4."""
    return linen("gru", Recurrent(), normal(2, 3, 3), expected=(4, 5))


class Frames(nn.Module):
    """Pictures in time: a convolutional LSTM over two frames, one after the other."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cell = nn.ConvLSTMCell(4, (3, 3))
        carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape)
        for t in range(2):
            carry, y = cell(carry, x[:, t])
        return nn.Conv(2, (1, 1))(y)


@specimen
def conv_lstm() -> Net:
    """The four gates are quarters of two kernels: one group of 4."""
    return linen("conv_lstm", Frames(), normal(2, 2, 4, 4, 3), expected=(4,))
