"""What a reader of the child should make: the parent's results where channels stay.

Only the rows that are fitted to are cut and corrected: of a convolution's many
positions mostly a few.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from cutjax.recover.follow import Reach, demand, moved_back
from cutjax.recover.products import wanted
from cutjax.recover.program import Program, read
from cutjax.recover.rows import Sample, made_axes, rows_at, some_made
from cutjax.recover.stops import Stop


def target(
    prog: Program, stop: Stop, parent: Mapping[Any, Any], child: Mapping[Any, Any]
) -> Callable[[Sample], Any]:
    """What the reader should make, as a function of the rows that are taken.

    Where parent and child already differ in the other operand of a sum that the result
    enters, such as the skip of a residual block, the reader can make up for it.

    Args:
        prog: the program.
        stop: the reader.
        parent: the parent's values up to its result.
        child: the child's values before it.

    Returns:
        `f(sample)`: rows as of `rows.some_made`.

    Reference:
        He, Zhang & Sun, Channel Pruning for Accelerating Very Deep Neural Networks,
        ICCV 2017, section 3.3: the target of a block's last layer is Y1 - Y1' + Y2.
    """
    (out,) = prog.frame.jaxpr.eqns[stop.index].outvars
    other = stop.reach.other

    def of(sample: Sample) -> Any:
        def some(value: Any) -> Any:
            return some_made(stop.reader, value, stop.kernel, sample)

        def stays(value: Any) -> Any:
            return _stays(prog, stop, value, some)

        made = parent[out]
        if stop.inner is not None:
            made = wanted(prog, stop.inner, parent, stop.index)
        made = stays(made)
        if other is None:
            return made
        moves = stop.reach.moves
        there = stays(moved_back(prog, moves, read(parent, other), full=True))
        wrong = there - some(moved_back(prog, moves, read(child, other)))
        wrong = wrong * stop.reach.sign
        if not stop.reach.plain:
            wrong = _before(wrong, some(_scale(prog, stop.reach, child, out)))
        return made + wrong.astype(made.dtype)

    return of


def _stays(prog: Program, stop: Stop, value: Any, some: Callable[[Any], Any]) -> Any:
    """Some rows of what the parent makes, or of the like, of the channels that stay."""
    reader, kernel, like = stop.reader, stop.kernel, stop.reader.outs[0]
    channels, at = made_axes(reader, kernel), rows_at(reader, kernel)
    rows = some(prog.evaluator.cut_const(value, like, channels))
    dims = [like.dims[a] for a in channels]
    # The axis of rows stays as it is, so that any dimension will do for it.
    dims.insert(at, reader.ins[reader.site.at].dims[0])
    moved = like._replace(dims=tuple(dims))
    return prog.evaluator.cut_const(rows, moved, (at,))


def _scale(prog: Program, reach: Reach, child: Mapping[Any, Any], out: Any) -> Any:
    """By how much the end of a reader's path rises with what it makes."""
    through = demand(prog, reach, child)
    ones = jnp.ones(prog.sizes(out), out.aval.dtype)
    return moved_back(prog, reach.moves, through(ones) - through(0 * ones))


def _before(wrong: Any, scale: Any) -> Any:
    """What, scaled, is so much; nothing of channels that hardly count."""
    # They would be asked for the world.
    small = jnp.abs(scale) < 1e-2 * jnp.abs(scale).max()
    return jnp.where(small, 0, wrong / jnp.where(small, 1, scale))
