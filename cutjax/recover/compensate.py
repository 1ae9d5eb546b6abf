"""Closed-form compensation: readers refitted so that child and parent make the same.

No labels and no gradient steps. Parent and child are walked in lockstep; at each reader
b is what the child reads, already corrected upstream, and y what it should make: what
the parent makes, and in a residual block also what the child's skip lacks. The reader
gets the kernel, and where there is a bias the shift, that minimise
|b W' + c - y|^2 + lambda |W' - W|^2, where W is the kernel as cut: with little data it
stays what it was.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from cutjax.errors import DataError
from cutjax.graph import Graph
from cutjax.mirror import named_leaves
from cutjax.recover.lockstep import Pair, segment
from cutjax.recover.program import Program, program
from cutjax.recover.refit import Fit, Found, Way, measure, refitted, way_of
from cutjax.recover.stops import Stop, stops_of
from cutjax.shrink import check_params, cut_params, needed, pruned, select


def compensate(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    keep: Mapping[str, np.ndarray],
    batches: Iterable[Any],
    *,
    tasks: Sequence[str] | str | None = None,
    damping: float | None = None,
    most_features: int = 4608,
    rows: int = 64,
    sharding: jax.sharding.Sharding | None = None,
    progress: bool = True,
) -> tuple[Any, list[Fit]]:
    """The cut parameters with every reader refitted to the parent.

    Memory: what is alive of all batches at one place of the network, of parent and
    child (some activations, never all), and the moments of one reader, features^2. At
    the end the outputs are compared: should refitting have made them worse on the
    calibration data, the parameters are returned as cut, with a warning.

    Args:
        apply: the full function.
        params: the full parameters.
        graph: their graph.
        keep: the channels to keep.
        batches: `(x, ...)` of calibration data, of equal sizes (a smaller last one is
            left out); targets are not looked at.
        tasks: as in `cut`.
        damping: lambda, as a share of the mean square of the features (about their
            mean, if there is a bias). None chooses it per reader: the last quarter of
            the batches is held out to judge, and then fitted to as well.
        most_features: convolutions with more features in their window get one mixing
            of channels for all positions of the window; wider dense layers are fitted
            to as many rows instead of to moments.
        rows: per feature, rows that suffice; of more, evenly spread ones are taken.
        sharding: of the batches over devices.
        progress: show a progress bar.

    Returns:
        `(small_params, fits)`: as `cut` returns them, but refitted, for the function of
        `cut`; and the error of each reader before and after. Kernels and the biases (or
        running means) that follow them are new, all else is as cut.

    Raises:
        DataError: no calibration data, or NaN in what a reader sees.
        KeepError: the keep does not fit the graph.

    Warns:
        UserWarning: a reader has fewer rows than features, so that its damping is
            raised; or all of it made the outputs worse.

    Reference:
        Channel pruning by least squares: He et al., ICCV 2017, eq. 2 and section 3.3;
        here in lockstep.
    """
    check_params(params, graph)
    chosen = graph.check_tasks(tasks)
    inputs = _inputs(batches, sharding)
    as_cut = named_leaves(cut_params(params, graph, keep))
    used = needed(graph, tasks)
    prog = program(select(apply, chosen), graph, keep, inputs[0])
    stops = tuple(s for s in stops_of(prog, as_cut) if s.path in used)
    ways = {s.index: way_of(s, len(inputs), most_features, rows) for s in stops}
    parent = list(named_leaves(params).values())
    job = Job(prog, ways, parent, inputs, damping, progress)
    child, fits = as_cut, []
    if any(s.tied is not None for s in stops):
        # Weights read in several places are fitted to all of them at once. That takes
        # a walk of its own: what comes after them must see them as they will be.
        child, fits = _tied(job, _walk(job, stops, as_cut).tied, as_cut)
        stops = tuple(s for s in stops if s.tied is None)
    done = _walk(job, stops, child)
    child = _not_worse(job, as_cut, done)
    out = jax.tree.unflatten(graph.treedef, list(child.values()))
    absent = frozenset(graph.shapes) - used
    return pruned(out, lambda name, _: name in absent), [*fits, *done.fits]


class Job(NamedTuple):
    """What stays the same: the program, ways by reader, the parent, the data."""

    prog: Program
    ways: Mapping[int, Way]
    parent: list[Any]
    inputs: list[tuple[Any, ...]]
    damping: float | None
    progress: bool


class Walked(NamedTuple):
    """A child refitted; what was measured at tied readers; pairs of outputs."""

    child: dict[str, Any]
    fits: list[Fit]
    tied: dict[int, tuple[Stop, Found, Pair]]
    outputs: list[list[Pair]]


def _walk(job: Job, stops: Sequence[Stop], child: Mapping[str, Any]) -> Walked:
    """Refit reader after reader; those that are tied are only measured."""
    alive = [_start(job.prog, x) for x in job.inputs]
    kernel, fits = None, []
    tied: dict[int, tuple[Stop, Found, Pair]] = {}
    bar = tqdm(stops, desc="compensate", disable=not job.progress, leave=False)
    for number, stop in enumerate(bar):
        way = job.ways[stop.index]
        step = _measured(segment(job.prog, stops, number), measure(stop, way))
        pair = Pair(job.parent, list(child.values()))
        alive, found, kernels = _stream(step, stop, pair, alive, kernel)
        if stop.tied is not None:
            before = tied[stop.tied][1] if stop.tied in tied else Found()
            tied[stop.tied] = stop, before.joined(found), kernels
            kernel = kernels.child
            continue
        kernel, shift, fit = refitted(job.prog, stop, way, found, kernels, job.damping)
        _warn(fit)
        fits.append(fit)
        child = _written(child, stop, kernel, shift)
    last = jax.jit(segment(job.prog, stops, len(stops)))
    pair = Pair(job.parent, list(child.values()))
    outputs = [last(pair, values, kernel)[1] for values in alive]
    return Walked(dict(child), fits, tied, outputs)


def _tied(
    job: Job, measured: Mapping[int, tuple[Stop, Found, Pair]], child: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Fit]]:
    fits = []
    for stop, found, kernels in measured.values():
        way = job.ways[stop.index]
        kernel, _, fit = refitted(job.prog, stop, way, found, kernels, job.damping)
        child = _written(child, stop, kernel, None)
        fits.append(fit)
    return dict(child), fits


def _not_worse(job: Job, as_cut: Mapping[str, Any], done: Walked) -> dict[str, Any]:
    """The refitted parameters, if their outputs are closer to the parent's."""
    frame, evaluator = job.prog.frame, job.prog.evaluator
    run = jax.jit(
        lambda leaves, x: evaluator.run(frame, [*leaves, *jax.tree.leaves(x)])
    )
    leaves, plain = list(as_cut.values()), []
    for x, pairs in zip(job.inputs, done.outputs, strict=True):
        outs = run(leaves, x)
        plain.append([Pair(p.parent, o) for p, o in zip(pairs, outs, strict=True)])
    before, after = _distance(plain), _distance(done.outputs)
    if after <= before * (1 + 1e-3) + 1e-9:
        return done.child
    warnings.warn(
        f"compensate: refitting made the outputs worse on the calibration data (error "
        f"{before:.3g} before, {after:.3g} after); the parameters are returned as cut",
        stacklevel=3,
    )
    return dict(as_cut)


def _distance(outputs: list[list[Pair]]) -> float:
    """Squared error over squared answers, the mean over outputs."""
    found = []
    for pairs in zip(*outputs, strict=True):
        answers = [(np.asarray(p.parent), np.asarray(p.child)) for p in pairs]
        if not np.issubdtype(answers[0][0].dtype, np.floating):
            continue
        wrong = sum(float(np.sum(np.square(c - p, dtype=float))) for p, c in answers)
        whole = sum(float(np.sum(np.square(p, dtype=float))) for p, _ in answers)
        found.append(wrong / max(whole, 1e-30))
    return float(np.mean(found)) if found else 0.0


def _inputs(batches: Iterable[Any], sharding: Any) -> list[tuple[Any, ...]]:
    found = []
    for batch in batches:
        x = batch[0] if isinstance(batch, tuple) else batch
        found.append(x if isinstance(x, tuple) else (x,))
    if not found:
        raise DataError("the calibration data is empty; pass batches of (x, ...)")
    size = len(jax.tree.leaves(found[0])[0])
    equal = [x for x in found if len(jax.tree.leaves(x)[0]) == size]
    return equal if sharding is None else [jax.device_put(x, sharding) for x in equal]


def _start(prog: Program, inputs: tuple[Any, ...]) -> dict[Any, Pair]:
    variables = prog.frame.jaxpr.invars[len(prog.paths) :]
    leaves = map(jnp.asarray, jax.tree.leaves(inputs))
    return {prog.numbers[v]: Pair(a, a) for v, a in zip(variables, leaves, strict=True)}


def _measured(run: Callable, measured: Callable) -> Callable:
    """A segment that returns what is measured at its reader instead of values."""

    @jax.jit
    def step(params, alive, kernel, at):
        left, seen = run(params, alive, kernel)
        return left, measured(seen, at), seen.kernels

    return step


def _stream(step: Callable, stop: Stop, params: Pair, alive: list, kernel: Any):
    """Take every batch through a segment; what was alive before it is let go."""
    after, found, kernels = [], Found(), None
    number = len(alive)
    # The last quarter is held out; of two or three batches the last one.
    first_held = number - (number // 4 or number // 2)
    rng = np.random.default_rng(0)
    while alive:
        at = len(after)
        values = alive.pop(0)
        left, part, kernels = step(params, values, kernel, rng.integers(1 << 30))
        after.append(left)
        part = jax.tree.map(np.asarray, part)
        if not all(np.isfinite(value).all() for value in part):
            raise DataError(
                f"what the reader of {stop.path!r} sees is NaN or infinite, in batch "
                f"{at}; look for NaN in the inputs or the parameters"
            )
        found = found.and_also(part, held=at >= first_held)
    return after, found, kernels


def _warn(fit: Fit) -> None:
    if fit.rows < fit.features:
        warnings.warn(
            f"compensate: the reader of {fit.path!r} has {fit.features} features but "
            f"{fit.rows} rows of data; damping is {fit.damping:g}; pass more "
            "calibration data",
            stacklevel=3,
        )


def _written(
    child: Mapping[str, Any], stop: Stop, kernel: Any, shift: Any
) -> dict[str, Any]:
    """The child's parameters with one reader's kernel, and what shifts it, replaced."""
    out = {**child}
    leaf = np.array(out[stop.path])
    leaf.reshape(-1)[stop.where.ravel()] = np.asarray(kernel, leaf.dtype).ravel()
    out[stop.path] = jnp.asarray(leaf)
    if stop.bias is not None and shift is not None:
        path, where = stop.bias
        leaf = np.array(out[path])
        sign = stop.reach.bias[1]  # type: ignore[index]
        leaf.reshape(-1)[where] += (sign * shift.ravel()).astype(leaf.dtype)
        out[path] = jnp.asarray(leaf)
    return out
