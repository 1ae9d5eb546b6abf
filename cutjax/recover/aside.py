"""Of a single batch, which rows are held out to judge by: those of some examples.

Rows of one example are much alike: some positions of an image would say of any fit to
the others that it is good. So examples are held out whole, one of every four.
"""

import math
from collections.abc import Collection, Sequence
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from cutjax.readers import channel_axes
from cutjax.recover.program import Program
from cutjax.recover.rows import Sample, made_axes, some_made
from cutjax.recover.stops import Stop
from cutjax.unify import CONCAT, Var, find, leaf_vars


def examples_of(prog: Program) -> frozenset[Var]:
    """The axes of examples: the first of every input."""
    inputs = prog.frame.jaxpr.invars[len(prog.paths) :]
    firsts = (d for var in inputs for d in prog.frame.values[var].dims[:1])
    return frozenset(leaf for d in firsts for leaf in leaf_vars(d) if leaf.size > 1)


def held_read(
    prog: Program, stop: Stop, examples: Collection[Var]
) -> Bool[jax.Array, " p"] | None:
    """Which positions of what a reader reads are held out; None if none can be told.

    Args:
        prog: the program.
        stop: the reader.
        examples: the axes of examples.
    """
    at = stop.reader.site.at
    taken = channel_axes(stop.reader, at)
    flags = _flags(prog, stop.reader.ins[at].dims, taken, examples)
    return None if flags is None else flags.ravel()


def held_made(
    prog: Program, stop: Stop, examples: Collection[Var], sample: Sample
) -> Bool[jax.Array, " p"] | None:
    """The same of the rows of `read_rows`; traced."""
    taken = made_axes(stop.reader, stop.kernel)
    flags = _flags(prog, stop.reader.outs[0].dims, taken, examples)
    if flags is None:
        return None
    return some_made(stop.reader, flags, stop.kernel, sample).ravel()


def _flags(
    prog: Program,
    dims: Sequence[Var],
    taken: Collection[int],
    examples: Collection[Var],
) -> jax.Array | None:
    """What is held out along the child's axes; those `taken` have length one."""
    sizes = [1 if i in taken else prog.evaluator.k.count(d) for i, d in enumerate(dims)]
    free = [i for i in range(len(dims)) if i not in taken]
    known = ((i, _along(dims[i], examples)) for i in free)
    # Where an operation loses the axis, one of its length stands for it.
    long = {var.size for var in examples}
    alike = ((i, held_of(dims[i].size)) for i in free if dims[i].size in long)
    found = ((i, flags) for i, flags in chain(known, alike) if flags is not None)
    for axis, flags in found:
        stay = jnp.asarray(flags[prog.evaluator.k.mask(dims[axis])])
        shape = [-1 if i == axis else 1 for i in range(len(dims))]
        return jnp.broadcast_to(stay.reshape(shape), sizes)
    return None


def _along(dim: Var, examples: Collection[Var]) -> Bool[np.ndarray, " n"] | None:
    """What is held out along an axis, if examples lie there."""
    dim = find(dim)
    if dim in examples:
        return held_of(dim.size)
    parts = [_along(part, examples) for part in dim.parts]
    if dim.form == CONCAT:
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if len(known) == len(parts) else None
    at = next((i for i, part in enumerate(parts) if part is not None), None)
    if at is None:
        return None
    before, after = (
        math.prod(part.size for part in some)
        for some in (dim.parts[:at], dim.parts[at + 1 :])
    )
    return np.tile(np.repeat(parts[at], after), before)  # type: ignore[arg-type]


def held_of(n: int) -> Bool[np.ndarray, " n"]:
    """Which of n examples: any one of each four in turn; of two or three the last.

    Example:
        >>> int(held_of(17).sum()), held_of(3).tolist()
        (4, [False, False, True])
    """
    held = np.zeros(n, bool)
    held[1:][-1:] = n < 4
    starts = np.arange(0, n - 3, 4)
    # Not always the fourth: rows that are taken at equal steps would miss it.
    held[starts + np.random.default_rng(0).integers(4, size=len(starts))] = True
    return held
