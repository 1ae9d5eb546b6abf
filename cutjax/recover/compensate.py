"""Closed-form compensation: readers refitted so that child and parent make the same.

No labels and no gradient steps. Parent and child are walked in lockstep; at each reader
b is what the child reads, already corrected upstream, and y what the parent makes. The
reader gets the kernel that minimises |b W' - y|^2 + lambda |W' - W|^2, where W is
the kernel as cut: with little data it stays what it was.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float
from tqdm import tqdm

from cutjax.errors import DataError
from cutjax.graph import Graph
from cutjax.mirror import named_leaves
from cutjax.readers import (
    channel_axes,
    is_conv,
    kernel_matrix,
    kernel_of,
    out_axes,
    patches,
    rows,
)
from cutjax.recover.lockstep import (
    Pair,
    Program,
    kernel_path,
    program,
    pull_back,
    segment,
)
from cutjax.resize import Reader
from cutjax.shrink import check_params, cut_params, needed, pruned, select


class Fit(NamedTuple):
    """One reader: squared error over squared target, as cut and refitted; features."""

    path: str
    before: float
    after: float
    features: int


class Moments(NamedTuple):
    """Sums over rows: b^T b, b^T y and y^2."""

    gram: Any
    cross: Any
    square: Any


def compensate(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    keep: Mapping[str, np.ndarray],
    batches: Iterable[Any],
    *,
    tasks: Sequence[str] | str | None = None,
    damping: float = 1e-3,
    most_features: int = 2400,
    progress: bool = True,
) -> tuple[Any, list[Fit]]:
    """The cut parameters with every reader refitted to the parent.

    Args:
        apply: the full function.
        params: the full parameters.
        graph: their graph.
        keep: the channels to keep.
        batches: `(x, ...)` of calibration data, of equal sizes (a smaller last one is
            left out); targets are not looked at.
        tasks: as in `cut`.
        damping: lambda, as a share of the mean square of the features.
        most_features: convolutions with more features in their window get one mixing
            of channels for all positions of the window; wider dense layers are left.
        progress: show a progress bar.

    Returns:
        `(small_params, fits)`: as `cut` returns them, but refitted, for the function of
        `cut`; and the error of each reader before and after.

    Raises:
        DataError: no calibration data, or NaN in what a reader sees.
        KeepError: the keep does not fit the graph.

    Reference:
        Channel pruning by least squares: He et al., ICCV 2017, eq. 2; here in lockstep.
    """
    check_params(params, graph)
    chosen = graph.check_tasks(tasks)
    inputs = _inputs(batches)
    small = cut_params(params, graph, keep)
    prog = program(select(apply, chosen), graph, keep, inputs[0])
    used = needed(graph, tasks)
    stops = _refittable(prog, most_features)
    prog = prog._replace(stops=tuple(s for s in stops if kernel_path(prog, s) in used))
    child = named_leaves(small)
    parent = list(named_leaves(params).values())
    alive = [_start(prog, x) for x in inputs]
    kernel, fits = None, []
    bar = tqdm(prog.stops, desc="compensate", disable=not progress, leave=False)
    for number, stop in enumerate(bar):
        reader, path = prog.reader(stop), kernel_path(prog, stop)
        wide = _features(reader) > most_features
        step = jax.jit(_measured(prog, number, reader, wide))
        pair = Pair(parent, list(child.values()))
        alive, total, kernels = _stream(step, pair, alive, kernel)
        if not all(np.isfinite(value).all() for value in total):
            raise DataError(f"what the reader of {path!r} sees is NaN or infinite")
        refit = _remixed if wide else _refitted
        kernel, fit = refit(prog, reader, total, kernels, damping)
        fits.append(fit._replace(path=path))
        child = {**child, path: pull_back(prog, stop, kernel, child[path])}
    out = jax.tree.unflatten(graph.treedef, list(child.values()))
    absent = frozenset(graph.shapes) - used
    return pruned(out, lambda name, _: name in absent), fits


def _inputs(batches: Iterable[Any]) -> list[tuple[Any, ...]]:
    found = []
    for batch in batches:
        x = batch[0] if isinstance(batch, tuple) else batch
        found.append(x if isinstance(x, tuple) else (x,))
    if not found:
        raise DataError("the calibration data is empty; pass batches of (x, ...)")
    size = len(jax.tree.leaves(found[0])[0])
    return [x for x in found if len(jax.tree.leaves(x)[0]) == size]


def _start(prog: Program, inputs: tuple[Any, ...]) -> dict[Any, Pair]:
    variables = prog.frame.jaxpr.invars[len(prog.paths) :]
    leaves = map(jnp.asarray, jax.tree.leaves(inputs))
    return {prog.numbers[v]: Pair(a, a) for v, a in zip(variables, leaves, strict=True)}


def _refittable(prog: Program, most: int) -> Iterable[int]:
    """The readers to refit: all but dense layers over too many features.

    Where nothing is left to read, or to make, there is nothing to fit.
    """
    for stop in prog.stops:
        reader = prog.reader(stop)
        kernel = reader.ins[1 - reader.site.at]
        if any(prog.evaluator.k.count(d) == 0 for d in kernel.dims):
            continue
        if is_conv(reader) or _features(reader) <= most:
            yield stop


def _features(reader: Reader) -> int:
    kernel = reader.ins[1 - reader.site.at].dims
    made = math.prod(reader.outs[0].dims[a].size for a in out_axes(reader))
    return math.prod(d.size for d in kernel) // made


def _measured(prog: Program, number: int, reader: Reader, wide: bool) -> Callable:
    """A segment that returns moments of its reader instead of values."""
    run = segment(prog, number)
    axes = channel_axes(reader, reader.site.at)

    def step(params, alive, kernel):
        left, read, made, kernels = run(params, alive, kernel)
        if wide:
            b, y = rows(read.child, axes), rows(read.parent, axes)
        else:
            b, y = patches(reader, read.child), rows(made, out_axes(reader))
        b, y = b.astype(jnp.float32), y.astype(jnp.float32)
        return left, Moments(b.T @ b, b.T @ y, jnp.sum(y**2)), kernels

    return step


def _stream(step: Callable, params: Pair, alive: list, kernel: Any):
    """Take every batch through a segment; moments are summed in double precision."""
    after: list[Any] = []
    total: Any = 0.0
    kernels: Any = None
    for values in alive:
        left, more, kernels = step(params, values, kernel)
        after.append(left)
        more = Moments(*(np.asarray(value, np.float64) for value in more))
        total = Moments(*map(np.add, total, more)) if after[1:] else more
    return after, total, kernels


def _refitted(prog: Program, reader: Reader, m: Moments, kernels: Pair, damping: float):
    """A free kernel: every position of the window on its own."""
    old = np.asarray(kernel_matrix(reader, kernels.child), np.float64)
    prior = old.transpose(1, 0, 2).reshape(-1, old.shape[-1])
    new = solve(m.gram, m.cross, prior, damping)
    c, k = old.shape[1], old.shape[0]
    matrix = new.reshape(c, k, -1).transpose(1, 0, 2)
    fit = Fit("", _error(m, prior), _error(m, new), len(new))
    return kernel_of(reader, jnp.asarray(matrix), kernels.child), fit


def _remixed(prog: Program, reader: Reader, m: Moments, kernels: Pair, damping: float):
    """The parent's kernel behind one mixing of channels, for all of the window."""
    kept = prog.evaluator.k
    (axis,) = channel_axes(reader, reader.site.at)
    (made,) = out_axes(reader)
    stays = kept.mask(reader.ins[reader.site.at].dims[axis])
    prior = np.eye(len(stays))[stays]
    mix = solve(m.gram, m.cross, prior, damping)
    parent = np.asarray(kernel_matrix(reader, kernels.parent), np.float64)
    matrix = mix @ parent[:, :, kept.mask(reader.outs[0].dims[made])]
    fit = Fit("", _error(m, prior), _error(m, mix), len(mix))
    return kernel_of(reader, jnp.asarray(matrix), kernels.child), fit


def _error(m: Moments, matrix: Float[np.ndarray, "f m"]) -> float:
    """Squared error of rows @ matrix, over the squared target."""
    wrong = np.sum(matrix * (m.gram @ matrix)) - 2 * np.sum(matrix * m.cross) + m.square
    return float(max(wrong, 0.0) / max(float(m.square), 1e-30))


def solve(
    gram: Float[np.ndarray, "f f"],
    cross: Float[np.ndarray, "f m"],
    prior: Float[np.ndarray, "f m"],
    damping: float,
) -> Float[np.ndarray, "f m"]:
    """The W that minimises |b W - y|^2 + lambda |W - prior|^2, from moments."""
    ridge = damping * max(np.trace(gram) / len(gram), 1e-12)
    left = gram + ridge * np.eye(len(gram))
    return scipy.linalg.solve(left, cross + ridge * prior, assume_a="pos")
