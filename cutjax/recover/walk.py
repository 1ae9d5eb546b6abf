"""One walk over a program's readers: measured, refitted, written, one after another."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from cutjax._jit import jit
from cutjax.errors import DataError, warn
from cutjax.given import as_traced, check_known
from cutjax.graph import Graph
from cutjax.inputs import equal_inputs, held_out
from cutjax.members import pruned
from cutjax.mirror import named_leaves
from cutjax.placed import automatic, divided, is_spread, relaxed
from cutjax.recover import judge
from cutjax.recover.ahead import ahead
from cutjax.recover.lockstep import Halt, Pair, halts_of, passing, segment
from cutjax.recover.loops import with_loops
from cutjax.recover.measures import measure
from cutjax.recover.missed import warn_of_missed
from cutjax.recover.program import Program, program
from cutjax.recover.refit import Fit, Found, Means, Way, refitted
from cutjax.recover.stops import Place, Stop, stops_of
from cutjax.rules.base import shape_of
from cutjax.shrink import check_params, cut_params, needed, select

ZERO = np.int32(0)

WayOf = Callable[[Stop, int], Way]

SMALL = 3e8
"""Numbers made per reader, in all batches, below which programs are compiled quickly: a
number costs some nanoseconds more, a segment most of a second less."""


def recovered(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    keep: Mapping[str, np.ndarray],
    batches: Iterable[Any],
    way_of: WayOf,
    *,
    tasks: Sequence[str] | str | None = None,
    damping: float | None = None,
    sharding: jax.sharding.Sharding | None = None,
    progress: bool = True,
    label: str = "compensate",
) -> tuple[Any, list[Fit]]:
    """The cut parameters with every reader refitted in its way; see `compensate`.

    Args:
        way_of: from a reader and the number of batches to how it is refitted.
        label: of the progress bar and of warnings.
    """
    check_params(params, graph)
    check_known(label, params)
    params = relaxed(params)
    chosen = graph.check_tasks(tasks)
    inputs = _inputs(batches, graph, sharding)
    check_known(label, inputs)
    as_cut = named_leaves(cut_params(params, graph, keep))
    used = needed(graph, tasks)
    prog = program(select(apply, chosen), graph, keep, inputs[0], unroll=False)
    prog, loops = with_loops(prog, keep)
    stops = [s for s in stops_of(prog, as_cut, loops) if used.issuperset(s.paths)]
    warn_of_missed(prog, loops, stops, used, label)
    ways = {s.place: way_of(s, len(inputs) * s.steps) for s in stops}
    parent = list(named_leaves(params).values())
    spread = is_spread((params, inputs))
    job = Job(prog, ways, parent, inputs, damping, spread, progress, label)
    with as_traced((named_leaves(params), graph.shapes)):
        done = _best(job, stops, as_cut)
        child = _not_worse(job, as_cut, done)
    out = jax.tree.unflatten(graph.treedef, list(child.values()))
    absent = frozenset(graph.shapes) - used
    return pruned(out, lambda name, _: name in absent), done.fits


class Job(NamedTuple):
    """What stays the same: the program, ways by reader, the parent, the data.

    `spread`: over devices, so that only running a step says where its results lie.
    """

    prog: Program
    ways: Mapping[Place, Way]
    parent: list[Any]
    inputs: list[tuple[Any, ...]]
    damping: float | None
    spread: bool
    progress: bool
    label: str


class Tied(NamedTuple):
    """What was measured at a reader, or all of the same weights, and the last of these.

    `apart`: readers with a bias of their own, and the means that it has to meet.
    """

    stop: Stop
    found: Found
    kernels: Pair
    apart: tuple[tuple[Stop, Means], ...] = ()


class Walked(NamedTuple):
    """A child refitted; what was measured at tied readers; outputs of some batches,
    and how far they are from the parent's."""

    child: dict[str, Any]
    fits: list[Fit]
    tied: dict[Place, Tied]
    judged: dict[int, list[Pair]]
    error: float


def _best(job: Job, stops: Sequence[Stop], as_cut: Mapping[str, Any]) -> Walked:
    """The best of some walks; of one, if nothing is tied.

    Weights that serve in several places are fitted to all of them at once. That takes
    a walk of its own: what comes after must see them as they will be. Those of several
    readers are fitted twice, to what the parent reads and then to what the child reads:
    with weights as cut a recurrence would be led astray.
    """
    best = done = _walk(job, stops, as_cut)
    first: list[Fit] = []
    again = [[s for s in stops if s.tied is None]] if done.tied else []
    if any(s.taught for s in stops):
        again.insert(0, [s._replace(taught=False) for s in stops])
    for stops in again:
        child, fits = _tied(job, done.tied, as_cut)
        first = first or fits
        done = _walk(job, stops, child)
        pairs = zip(fits, first, strict=True)
        tied = [fit._replace(before=old.before) for fit, old in pairs]
        done = done._replace(fits=[*tied, *done.fits])
        if done.error <= best.error:
            best = done
    return best


def _walk(job: Job, stops: Sequence[Stop], child: Mapping[str, Any]) -> Walked:
    """Refit reader after reader; those that are tied are only measured."""
    alive = [_start(job.prog, x) for x in job.inputs]
    fits: list[Fit] = []
    tied: dict[Place, Tied] = {}
    halts = halts_of(stops)
    passes = [passing(job.prog, halts, n) for n in range(len(halts) + 1)]
    steps = _steps(job, halts, child, alive[0], passes)
    bar = tqdm(halts, desc=job.label, disable=not job.progress, leave=False)
    for number, (halt, step) in enumerate(zip(bar, steps, strict=False)):
        pair = Pair(job.parent, list(child.values()))
        alive, *measured = _stream(step, halt, pair, alive, passes[number])
        for stop, found, kernels in zip(halt.stops, *measured, strict=True):
            one = Tied(stop, found, kernels)
            if stop.tied is not None:
                tied[stop.tied] = _also(job, tied.get(stop.tied), one)
                continue
            child, fit = _refitted(job, one, child)
            fits.append(fit)
    last = next(steps)
    pair = Pair(job.parent, list(child.values()))
    judged = {
        at: [Pair(*map(np.asarray, p)) for p in last(pair, alive[at], ZERO)[1]]
        for at in judge.which(job.prog, len(alive))
    }
    return Walked(dict(child), fits, tied, judged, judge.error(judged))


def _steps(
    job: Job,
    halts: Sequence[Halt],
    child: Mapping[str, Any],
    alive: Mapping,
    passes: Sequence[Callable],
) -> Iterator[Callable[..., Any]]:
    """A compiled step per halt, and one to the end."""
    # Of one batch some examples are held out, where there is a damping to choose.
    alone = len(job.inputs) == 1 and job.damping is None
    measures = [measure(job.prog, halt, job.ways, alone=alone) for halt in halts]
    steps = [
        _measured(segment(job.prog, halts, number), measured)
        for number, measured in enumerate([*measures, None])
    ]
    if job.spread:
        return map(jit, steps)
    pair = Pair(job.parent, list(child.values()))

    def following(number: int, args: tuple[Any, ...], shapes: Any) -> tuple[Any, ...]:
        return pair, {**passes[number](args[1]), **shapes[0]}, ZERO

    def spent(number: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # Not the inputs, which are the caller's, and not what is judged in the end.
        kept = {*alive, *passes[number](args[1])}
        over = {n: n not in kept and number < len(halts) for n in args[1]}
        pairs = {n: jax.tree.map(lambda _, o=over[n]: o, p) for n, p in args[1].items()}
        return jax.tree.map(lambda _: False, pair), pairs, False

    first = pair, alive, ZERO
    return ahead(steps, first, following, spent=spent, quick=_small(job))


def _small(job: Job) -> bool:
    """Whether all the data goes through faster than XLA optimises the program."""
    made = (var for eqn in job.prog.frame.jaxpr.eqns for var in eqn.outvars)
    numbers = sum(math.prod(shape_of(var)) for var in made)
    return numbers * len(job.inputs) < SMALL * len(job.prog.frame.sites)


def _also(job: Job, before: Tied | None, one: Tied) -> Tied:
    """With one more of the readers; what has a bias of its own less its means."""
    (stop, found, kernels, _), apart = one, () if before is None else before.apart
    if stop.apart:
        # One mixing for all of a window is fitted to what is read alone.
        if stop.bias is not None and job.ways[stop.place].name != "mixing":
            means = found.means()
            found, apart = found.about(means), (*apart, (stop, means))
        stop = stop._replace(bias=None)
    if before is not None:
        found = before.found.joined(found)
    return Tied(stop, found, kernels, apart)


def _tied(
    job: Job, measured: Mapping[Place, Tied], child: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Fit]]:
    fits = []
    for one in measured.values():
        child, fit = _refitted(job, one, child)
        fits.append(fit)
    return dict(child), fits


def _refitted(
    job: Job, one: Tied, child: Mapping[str, Any]
) -> tuple[dict[str, Any], Fit]:
    """The child with one reader refitted, or all readers of the same weights."""
    stop, found, kernels, apart = one
    way = job.ways[stop.place]
    kernel, shift, fit = refitted(job.prog, stop, way, found, kernels, job.damping)
    _warn(fit, job.label)
    child = _written(child, stop, kernel, shift)
    for each, means in apart:
        child = _shifted(child, each, means.shift(each, kernel))
    return dict(child), fit


def _not_worse(job: Job, as_cut: Mapping[str, Any], done: Walked) -> dict[str, Any]:
    """The refitted parameters, if their outputs are closer to the parent's."""
    frame, evaluator = job.prog.frame, job.prog.evaluator
    run = jit(
        lambda leaves, x: evaluator.run(frame, [*leaves, *jax.tree.leaves(x)]),
        quick=_small(job),
    )
    leaves = list(as_cut.values())
    whole, after = judge.whole(done.judged), done.error
    wrong = 0 * whole
    for at, pairs in done.judged.items():
        outs = zip(pairs, run(leaves, job.inputs[at]), strict=True)
        wrong = wrong + judge.wrong([Pair(p.parent, out) for p, out in outs])
        # Errors only add up: a few batches mostly suffice to know.
        if after <= judge.mean(wrong, whole) * (1 + 1e-3) + 1e-9:
            return done.child
    warn(
        f"{job.label}: refitting made the outputs worse on the calibration data (error "
        f"{judge.mean(wrong, whole):.3g} before, {after:.3g} after); the parameters "
        "are returned as cut",
    )
    return dict(as_cut)


def _inputs(
    batches: Iterable[Any], graph: Graph, sharding: Any
) -> list[tuple[Any, ...]]:
    equal = equal_inputs(batches, graph.inputs, empty="the calibration data is empty")
    if sharding is None:
        return equal
    where = automatic(sharding)
    return [divided(x, where) for x in equal]


def _start(prog: Program, inputs: tuple[Any, ...]) -> dict[Any, Pair]:
    variables = prog.frame.jaxpr.invars[len(prog.paths) :]
    leaves = map(jnp.asarray, jax.tree.leaves(inputs))
    return {prog.numbers[v]: Pair(a, a) for v, a in zip(variables, leaves, strict=True)}


def _measured(run: Callable, measured: Callable | None) -> Callable:
    """A segment that returns what is measured where it halts instead of values.

    After the last one, where nothing is measured, it returns the outputs.
    """

    def step(params, alive, at):
        left, facing = run(params, alive)
        return left, *((facing, []) if measured is None else measured(facing, at))

    return step


def _stream(
    step: Callable, halt: Halt, params: Pair, alive: list, passes: Callable
) -> tuple[list, list[Found], list[Pair]]:
    """Take every batch through a segment; what was alive before it is let go."""
    after, found = [], [Found() for _ in halt.stops]
    kernels: list[Pair] = []
    number = len(alive)
    held = held_out(number)
    rng = np.random.default_rng(0)
    while alive:
        at = len(after)
        values = alive.pop(0)
        start = np.int32(rng.integers(1 << 30))
        made, parts, kernels = step(params, values, start)
        after.append({**passes(values), **made})
        for stop, part in zip(halt.stops, parts, strict=True):
            if not part.sound():
                raise DataError(
                    f"what the reader of {stop.path!r} sees is NaN or infinite, in "
                    f"batch {at}; look for NaN in the inputs or the parameters"
                )
        found = [
            before.and_also(part, held=at in held)
            for before, part in zip(found, parts, strict=True)
        ]
    return after, [each.on_host() for each in found], kernels


def _warn(fit: Fit, label: str) -> None:
    if fit.rows < fit.features and fit.damping:
        warn(
            f"{label}: the reader of {fit.path!r} has {fit.features} features but "
            f"{fit.rows} rows of data; damping is {fit.damping:g}; pass more "
            "calibration data",
        )


def _written(
    child: Mapping[str, Any], stop: Stop, kernel: Any, shift: Any
) -> dict[str, Any]:
    """The child's parameters with one reader's kernel, and what shifts it, replaced."""
    if stop.affine is not None:
        kernel = stop.affine.undone(kernel)
    out, new = {**child}, np.asarray(kernel).ravel()
    for path, held, where in stop.held({path: np.size(v) for path, v in out.items()}):
        leaf = np.array(out[path])
        leaf.reshape(-1)[where] = new[held].astype(leaf.dtype)
        out[path] = jnp.asarray(leaf)
    return out if stop.bias is None or shift is None else _shifted(out, stop, shift)


def _shifted(child: Mapping[str, Any], stop: Stop, shift: Any) -> dict[str, Any]:
    """The child's parameters with so much added to a reader's bias."""
    path, where = stop.bias  # type: ignore[misc]
    leaf = np.array(child[path])
    sign = stop.reach.bias.sign  # type: ignore[union-attr]
    leaf.reshape(-1)[where] += (sign * shift.ravel()).astype(leaf.dtype)
    return {**child, path: jnp.asarray(leaf)}
