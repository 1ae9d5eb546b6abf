"""Taking values out at readers: what they read, by which kernel, and what they make."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Int

from cutjax.dims import Axis, Fixed, Leaf, Product, channels
from cutjax.gate import gated_operand
from cutjax.graph import Graph
from cutjax.readers import (
    channel_axes,
    energy,
    hears,
    kernel_matrix,
    mixes,
    out_axes,
    rows,
    single,
)
from cutjax.resize import Hook, Kept, Reader, Run, freeze
from cutjax.unify import leaf_vars


class Tapped(NamedTuple):
    """What one run shows, see `Seen`; filled while the run is traced."""

    inputs: dict[tuple[int, str], Array]
    kernels: dict[tuple[int, str], Array]
    made: dict[int, Array]
    energies: dict[int, Array]
    activations: dict[str, list[Array]]


def tap(
    tapped: Tapped,
    axes: dict[int, tuple[int, ...]],
    handles: Any,
    graph: Graph,
    moments: bool,
) -> Hook:
    """A hook that notes what readers read and adds a probe to what they make.

    Readers are numbered in order of evaluation. All are gated by `handles.gates`, those
    without a kernel by `handles.unread` too.
    """
    numbers = iter(range(1 << 30))
    free = {g.name for g in graph.free}

    def hook(kept: Kept, reader: Reader, run: Run, args: list[Any]) -> list[Any]:
        number, at, args = next(numbers), reader.site.at, list(args)
        _note(tapped, kept, reader, args[at], free)
        args[at] = gated_operand(kept, reader, args, handles.gates)
        if not moments or not mixes(reader):
            args[at] = gated_operand(kept, reader, args, handles.unread)
            return run(args)
        (out,) = run(args)
        axes[number] = out_axes(reader)
        matrix = kernel_matrix(reader, args[1 - at])
        made = out.size // matrix.shape[-1]
        for name in _names(kept, reader, free):
            index = positions(kept, reader, name)
            flat = rows(args[at], channel_axes(reader, at))[:, index]
            flat = flat.reshape(-1, index.shape[1])
            flat = single(flat) * np.sqrt(made / flat.shape[0])
            tapped.inputs[number, name] = flat
            kernel = single(matrix[:, index])
            tapped.kernels[number, name] = kernel.reshape(-1, *kernel.shape[2:])
            tapped.made[number] = out
            tapped.energies[number] = energy(reader, args[at], args[1 - at])
        probes = handles.probes
        return [out + probes[number] if number in probes else out]

    return hook


def _note(tapped: Tapped, kept: Kept, reader: Reader, operand: Any, free) -> None:
    """Note the channels of an operand, one entry per axis that holds a group."""
    site = reader.site
    if not hears(reader):
        return
    for axis in site.axes:
        var = reader.ins[site.at].dims[axis]
        for name in dict.fromkeys(kept.name(v) or "" for v in leaf_vars(var)):
            if name in free:
                index = _positions(freeze(var, _label(kept, name)), name)
                flat = rows(operand, (axis,))[:, index]
                flat = single(flat.reshape(-1, index.shape[1]))
                tapped.activations.setdefault(name, []).append(flat)


def _names(kept: Kept, reader: Reader, free: set[str]) -> list[str]:
    """The groups that a reader reads and that may be cut."""
    at = reader.site.at
    found = (
        kept.name(v) or ""
        for axis in channel_axes(reader, at)
        for v in leaf_vars(reader.ins[at].dims[axis])
    )
    return list(dict.fromkeys(name for name in found if name in free))


def _label(kept: Kept, name: str):
    def label(var) -> Axis:
        return Leaf(name, var.size) if kept.name(var) == name else Fixed(var.size)

    return label


def positions(kept: Kept, reader: Reader, name: str) -> Int[np.ndarray, "rest n"]:
    """Where a group's channels stand in the flattened contracted axes of a reader."""
    at = reader.site.at
    dims = [reader.ins[at].dims[axis] for axis in channel_axes(reader, at)]
    label = _label(kept, name)
    return _positions(Product(tuple(freeze(d, label) for d in dims)), name)


def _positions(axis: Axis, name: str) -> Int[np.ndarray, "rest n"]:
    found = channels(axis, name)
    order = np.argsort(found, kind="stable")[int((found < 0).sum()) :]
    return order.reshape(int(found.max()) + 1, -1).T
