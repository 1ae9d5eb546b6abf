"""What a reader reads and makes, as matrices: one product `rows @ kernel` per group.

Dense layers and convolutions have one group; grouped and depthwise convolutions, and
contractions with batch axes, have several, each with a kernel of its own. Features run
over the positions of the window outside and channels inside: so windows are copied in
long pieces.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from cutjax.readers import is_conv
from cutjax.resize import Kept, Reader

AnyArray = Array | np.ndarray


class Sample(NamedTuple):
    """Which rows are taken: every `steps[i]`-th from `at` on along axis `i` of space.

    What is no convolution has one axis of rows; no steps: all of them.
    """

    steps: tuple[int, ...] = ()
    at: Int[AnyArray, ""] | int = 0


WHOLE = Sample()

CHEAP, MANY = 2e9, 2**16
"""Multiply-adds of moments, and rows, that a reader may take though fewer suffice."""


def is_matrix(reader: Reader) -> bool:
    """Whether what a reader makes is rows times a kernel, both known."""
    site, ins = reader.site, reader.ins
    if site.looped or site.summed is not None or len(ins) != 2:
        return False
    if ins[1 - site.at].data or not ins[site.at].data:
        return False
    if is_conv(reader):
        return site.at == 0 and reader.eqn.params["batch_group_count"] == 1
    return "dimension_numbers" in reader.eqn.params


def groups_of(reader: Reader, kept: Kept) -> int:
    """The groups of a convolution once channels are gone; 1 for whatever else."""
    if not is_conv(reader) or reader.eqn.params["feature_group_count"] == 1:
        return 1
    spec = _conv(reader)
    each = kept.count(reader.ins[1].dims[spec.rhs_spec[1]])
    return kept.count(reader.ins[0].dims[spec.lhs_spec[1]]) // max(each, 1)


def kernel_blocks(
    reader: Reader, kernel: Shaped[AnyArray, "..."], groups: int = 1
) -> Shaped[AnyArray, "g f m"]:
    """A kernel as one matrix per group; `groups` of a convolution."""
    if is_conv(reader):
        out, inner, *window = _conv(reader).rhs_spec
        moved = kernel.transpose(out, *window, inner)
        m, f = moved.shape[0], math.prod(moved.shape[1:])
        return moved.reshape(groups, m // groups, f).swapaxes(1, 2)
    batch, inner, free = _dot_axes(reader, 1 - reader.site.at, kernel.ndim)
    moved = kernel.transpose(*batch, *inner, *free)
    b, c = len(batch), len(inner)
    sizes = [math.prod(s) for s in np.split(np.array(moved.shape), [b, b + c])]
    return moved.reshape([int(s) for s in sizes])


def kernel_from(
    reader: Reader, blocks: Float[np.ndarray, "g f m"], like: Any, groups: int = 1
) -> Float[np.ndarray, "..."]:
    """The kernel that has these blocks; `like` has its shape and dtype."""
    index = np.arange(math.prod(like.shape)).reshape(like.shape)
    flat = np.empty(index.size, like.dtype)
    flat[kernel_blocks(reader, index, groups).ravel()] = np.asarray(blocks).ravel()
    return flat.reshape(like.shape)


def features_of(reader: Reader, kernel: Any) -> int:
    """How many features a group reads."""
    if is_conv(reader):
        return math.prod(kernel.shape) // kernel.shape[_conv(reader).rhs_spec[0]]
    _, inner, _ = _dot_axes(reader, 1 - reader.site.at, len(kernel.shape))
    return math.prod(kernel.shape[a] for a in inner)


def rows_of(reader: Reader) -> int:
    """How many rows one batch gives at full size, per group."""
    out = reader.eqn.outvars[0].aval.shape
    return math.prod(out[a] for a in _row_axes(reader))


def enough(features: int, each: int, groups: int = 1) -> int:
    """How many rows to fit to: `each` per feature, or more where that costs little."""
    cheap = int(CHEAP / max(groups * features**2, 1))
    return max(each * features, min(cheap, MANY))


def steps_for(reader: Reader, batches: int, wanted: int) -> tuple[int, ...]:
    """The widest grid over a reader's rows that leaves as many as are wanted.

    Args:
        reader: the reader.
        batches: how many there are.
        wanted: rows, in all of them.
    """
    rows = rows_of(reader) * batches
    if not is_conv(reader):
        return (max(rows // max(wanted, 1), 1),)
    out = reader.eqn.outvars[0].aval.shape
    space = [out[axis] for axis in _conv(reader).out_spec[2:]]
    images, steps = rows // math.prod(space), [1] * len(space)

    def wider(axis: int) -> list[int]:
        return [step + (i == axis) for i, step in enumerate(steps)]

    def suffices(steps: list[int]) -> bool:
        left = math.prod(n // step for n, step in zip(space, steps, strict=True))
        return images * left >= max(wanted, 1)

    # One axis at a time, the densest first: an axis of length one stays.
    axes = range(len(space))
    while found := [axis for axis in axes if suffices(wider(axis))]:
        steps = wider(min(found, key=steps.__getitem__))
    return tuple(steps)


def some_made(
    reader: Reader,
    made: Shaped[Array, "..."],
    kernel: Any,
    sample: Sample = WHOLE,
) -> Shaped[Array, "..."]:
    """Some rows of what a reader makes: its `made_axes`, and one axis of rows.

    The rows come after the batch axes of a contraction: see `rows_at`.
    """
    if is_conv(reader):
        batch, channel, *space = _conv(reader).out_spec
        moved = made.transpose(batch, *space, channel)
        for axis, step in enumerate(sample.steps, start=1):
            moved = _every(moved, axis, step, sample.at)
        return moved.reshape(-1, moved.shape[-1])
    return _sampled(made, _out_axes(reader, kernel), sample)


def rows_at(reader: Reader, kernel: Any) -> int:
    """Which axis of `some_made` the rows are."""
    return 0 if is_conv(reader) else len(_out_axes(reader, kernel)[0])


def made_rows(
    reader: Reader,
    made: Float[Array, "..."],
    kernel: Any,
    groups: int = 1,
    sample: Sample = WHOLE,
) -> Float[Array, "g p m"]:
    """What a reader makes, some of its rows."""
    return in_groups(reader, some_made(reader, made, kernel, sample), kernel, groups)


def in_groups(
    reader: Reader, some: Float[Array, "..."], kernel: Any, groups: int = 1
) -> Float[Array, "g p m"]:
    """What `some_made` gives, or its channels that stay, as a matrix per group."""
    if is_conv(reader):
        return some.reshape(len(some), groups, -1).swapaxes(0, 1)
    return _matrices(some, rows_at(reader, kernel))


def read_rows(
    reader: Reader,
    values: Float[Array, "..."],
    kernel: Any,
    groups: int = 1,
    sample: Sample = WHOLE,
) -> Float[Array, "g p f"]:
    """What a reader reads for each of the rows of `made_rows`."""
    if is_conv(reader):
        return _patches(reader, values, kernel, groups, sample)
    batch, inner, free = _dot_axes(reader, reader.site.at, values.ndim)
    return _matrices(_sampled(values, (batch, free, inner), sample), len(batch))


def made_axes(reader: Reader, kernel: Any) -> tuple[int, ...]:
    """Axes of the output that tell channels (and groups) apart, in blocks' order."""
    if is_conv(reader):
        return (_conv(reader).out_spec[1],)
    batch, _, free = _out_axes(reader, kernel)
    return (*batch, *free)


def _row_axes(reader: Reader) -> tuple[int, ...]:
    kernel = reader.eqn.invars[1 - reader.site.at].aval
    rank = len(reader.eqn.outvars[0].aval.shape)
    taken = made_axes(reader, kernel)
    return tuple(a for a in range(rank) if a not in taken)


def _conv(reader: Reader) -> Any:
    return reader.eqn.params["dimension_numbers"]


def _dot_axes(reader: Reader, operand: int, rank: int):
    """Axes of an operand: batch, contracted, free."""
    contracted, batch = reader.eqn.params["dimension_numbers"]
    inner, outer = tuple(contracted[operand]), tuple(batch[operand])
    free = tuple(a for a in range(rank) if a not in (*inner, *outer))
    return outer, inner, free


def _out_axes(reader: Reader, kernel: Any):
    """Axes of a contraction's output: batch, rows, made by the kernel."""
    batch, _, free = _dot_axes(reader, 1 - reader.site.at, len(kernel.shape))
    rank, b, m = len(reader.eqn.outvars[0].aval.shape), len(batch), len(free)
    first = tuple(range(b))
    if reader.site.at == 0:
        return first, tuple(range(b, rank - m)), tuple(range(rank - m, rank))
    return first, tuple(range(b + m, rank)), tuple(range(b, b + m))


def _single(sample: Sample) -> tuple[int, Any]:
    return (sample.steps[0] if sample.steps else 1), sample.at


def _sampled(values: Array, axes: Any, sample: Sample) -> Array:
    """Axes in the order of batch, rows and others; some of the rows, as one axis."""
    batch, rows, rest = (tuple(some) for some in axes)
    moved = values.transpose(*batch, *rows, *rest)
    count = math.prod(values.shape[a] for a in rows)
    after = moved.shape[len(batch) + len(rows) :]
    flat = moved.reshape(*moved.shape[: len(batch)], count, *after)
    return _every(flat, len(batch), *_single(sample))


def _matrices(some: Array, at: int) -> Array:
    """A matrix per group from an array whose rows are axis `at`."""
    outer, (rows, *rest) = some.shape[:at], some.shape[at:]
    return some.reshape(math.prod(outer), rows, math.prod(rest))


def _every(values: Array, axis: int, step: int, at: Any) -> Array:
    step = min(step, values.shape[axis])
    if step == 1:
        return values
    length = (values.shape[axis] // step - 1) * step + 1
    part = jax.lax.dynamic_slice_in_dim(values, at % step, length, axis)
    return jax.lax.slice_in_dim(part, 0, length, step, axis)


def _patches(
    reader: Reader, values: Array, kernel: Any, groups: int, sample: Sample
) -> Array:
    """Windows cut out by slices: grouped convolutions are what XLA's CPU does worst."""
    p, spec = reader.eqn.params, _conv(reader)
    x = values.transpose(spec.lhs_spec[0], *spec.lhs_spec[2:], spec.lhs_spec[1])
    pads = zip(p["padding"], p["lhs_dilation"], strict=True)
    space = [(low, high, d - 1) for (low, high), d in pads]
    zero = jnp.zeros((), x.dtype)
    x = jax.lax.pad(x, zero, [(0, 0, 0), *space, (0, 0, 0)])
    window = [kernel.shape[i] for i in spec.rhs_spec[2:]]
    made = [reader.eqn.outvars[0].aval.shape[i] for i in spec.out_spec[2:]]
    steps = sample.steps or (1,) * len(made)
    slices = []
    for offset in np.ndindex(*window):
        part = x
        lines = (offset, p["rhs_dilation"], p["window_strides"], made, steps)
        axes = zip(*lines, strict=True)
        for axis, (o, dilation, stride, n, step) in enumerate(axes, start=1):
            first, last = o * dilation, o * dilation + (n - 1) * stride + 1
            part = jax.lax.slice_in_dim(part, first, last, stride, axis)
            part = _every(part, axis, step, sample.at)
        slices.append(part)
    seen = jnp.stack(slices, -2)
    each = seen.shape[-1] // groups
    split = seen.reshape(-1, len(slices), groups, each).transpose(2, 0, 1, 3)
    return split.reshape(groups, -1, len(slices) * each)
