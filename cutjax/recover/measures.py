"""What is kept of a batch where a walk halts: moments of rows, or rows themselves."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cutjax._compat import scan_counts
from cutjax.readers import channel_axes, is_conv, rows
from cutjax.recover import normal
from cutjax.recover.aside import examples_of, held_made, held_read
from cutjax.recover.follow import stepped, whole
from cutjax.recover.lockstep import Facing, Halt, Pair, Seen, seen, started
from cutjax.recover.loops import Loop
from cutjax.recover.program import NOWHERE, Program, needs, read
from cutjax.recover.refit import Found, Way
from cutjax.recover.rows import Sample, in_groups, read_rows
from cutjax.recover.stops import Place, Stop
from cutjax.unify import Var

Measured = tuple[list[Found], list[Pair]]
"""What was measured at each reader, and both its kernels as they stand."""


def measure(
    prog: Program, halt: Halt, ways: Mapping[Place, Way], *, alone: bool = False
) -> Callable[[Facing, Any], Measured]:
    """How to measure at a halt; traced.

    Args:
        prog: the program.
        halt: where.
        ways: how each reader will be refitted.
        alone: whether there is but one batch, of which some examples are held out.

    Returns:
        `f(facing, at) -> (measured, kernels)`; `at` is the first row to be taken.
    """
    examples = examples_of(prog) if alone else frozenset()

    def of(facing: Facing, at: Any) -> Measured:
        if halt.loop is not None:
            where = halt.loop, halt.stops, ways, examples
            taken, kernels = _in_loop(prog, *where, facing, at)
        else:
            (stop,) = halt.stops
            there, way = seen(prog, stop, *facing[:2]), ways[stop.place]
            held = _held(prog, stop, way, examples, at)
            taken = [(_taken(stop, way, there, at), held)]
            kernels = [there.kernels]
        return [
            _kept(ways[stop.place], *some)
            for stop, some in zip(halt.stops, taken, strict=True)
        ], kernels

    return of


def _kept(way: Way, some: normal.Rows, held: jax.Array | None) -> Found:
    """What is kept of some rows, of which some are held out."""
    if way.name == "rows":
        return Found(some, held)
    if held is None:
        return Found(normal.moments(*some))
    return Found(*(normal.moments(*some, of) for of in (~held, held)))


def _held(
    prog: Program, stop: Stop, way: Way, examples: frozenset[Var], at: Any
) -> jax.Array | None:
    """Which of the rows of `_taken` are held out."""
    if way.name == "scale" or not examples:
        return None
    if way.name == "mixing" and is_conv(stop.reader):
        return held_read(prog, stop, examples)
    return held_made(prog, stop, examples, Sample(way.steps, at))


def _taken(stop: Stop, way: Way, seen: Seen, at: Any) -> normal.Rows:
    """Some rows of what a reader reads and should make."""
    reader, kernel = stop.reader, seen.kernels.child
    mixing = way.name == "mixing"
    if mixing and is_conv(reader):
        axes = channel_axes(reader, reader.site.at)
        return normal.Rows(rows(seen.read, axes)[None], rows(seen.full, axes)[None])
    sample = Sample(way.steps, at)
    b = read_rows(reader, seen.read, kernel, stop.groups, sample)
    if stop.padded:
        # What only padding reads must not be fitted by: it stays padding.
        b = b * (stop.blocks != NOWHERE).any(2)[:, None]
    if mixing:
        full = read_rows(reader, seen.full, seen.kernels.parent, sample=sample)
        return normal.Rows(b, full)
    return normal.Rows(b, in_groups(reader, seen.made(sample), kernel, stop.groups))


def _in_loop(
    prog: Program,
    loop: Loop,
    stops: Sequence[Stop],
    ways: Mapping[Place, Way],
    examples: frozenset[Var],
    facing: Facing,
    at: Any,
) -> tuple[list[Any], list[Pair]]:
    """The rows of all steps of a loop, which both networks take side by side.

    With each those that are held out, as of `_held`.
    """
    eqn, step = prog.frame.jaxpr.eqns[loop.index], loop.prog
    consts, carried = scan_counts(eqn.params)
    sides = facing.parent, facing.child
    pairs = [
        Pair(*(jnp.asarray(read(side, atom), atom.aval.dtype) for side in sides))
        for atom in eqn.invars
    ]
    names = [step.numbers[var] for var in step.frame.jaxpr.invars[len(step.paths) :]]

    def values(carry: Sequence[Pair], xs: Sequence[Pair]) -> list[dict[Any, Any]]:
        data = [*(pairs[i] for i in loop.given), *carry, *xs]
        alive = dict(zip(names, data, strict=True))
        return [started(step, facing.params[side], alive, side) for side in (0, 1)]

    def body(state: Any, xs: Any) -> Any:
        carry, at = state
        parent, child = values(carry, xs)
        for index in range(len(step.frame.jaxpr.eqns)):
            parent.update(whole(step, index, parent))
            child.update(stepped(step, index, child))
        taken = [
            (
                _taken(stop, ways[stop.place], seen(step, stop, parent, child), at),
                _held(step, stop, ways[stop.place], examples, at),
            )
            for stop in stops
        ]
        left = step.frame.jaxpr.outvars[:carried]
        return ([Pair(read(parent, v), read(child, v)) for v in left], at + 1), taken

    first, scanned = pairs[consts : consts + carried], pairs[consts + carried :]
    how = {"length": loop.steps, "reverse": eqn.params["reverse"]}
    _, taken = jax.lax.scan(body, (first, at), scanned, **how)
    return jax.tree.map(_end_to_end, taken), _kernels(step, stops, facing.params)


def _end_to_end(rows: jax.Array) -> jax.Array:
    """Rows [steps, g, p, f] of all steps as [g, steps p, f]; flags [steps, p] too."""
    if rows.ndim == 2:
        return rows.ravel()
    steps, groups, each, features = rows.shape
    return jnp.moveaxis(rows, 0, 1).reshape(groups, steps * each, features)


def _kernels(step: Program, stops: Sequence[Stop], params: Pair) -> list[Pair]:
    """Both kernels of readers in a loop, which are the same in every step."""
    return [
        Pair(*(_kernel(step, stop, params[side], side) for side in (0, 1)))
        for stop in stops
    ]


def _kernel(step: Program, stop: Stop, params: Sequence[Any], side: int) -> Any:
    env, var = started(step, params, {}, side), step.kernel(stop.index)
    for index in needs(step, [var]):
        env.update((stepped if side else whole)(step, index, env))
    return env[var]
