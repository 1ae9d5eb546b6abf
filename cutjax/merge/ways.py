"""How each network's side of a merged function gets the result of an equation."""

from collections.abc import Collection, Mapping

import numpy as np

from cutjax._compat import primitive
from cutjax.merge.crossed import Torn, across, channels_of
from cutjax.merge.sums import is_sum
from cutjax.readers import channel_axes, is_conv
from cutjax.recover.program import SAME, Program, behind, needs
from cutjax.recover.rows import is_matrix
from cutjax.resize import Evaluator, Reader, kept_of
from cutjax.unify import Var
from cutjax.walk import Frame

AT_ANY_WIDTH = SAME | {primitive("transpose")}
"""What needs not know which channels an array has."""

MIXING, SUMMED, ALONE, TAKEN = "mixing", "summed", "alone", "taken"
"""How a network's side gets the result of an equation: from both operands by a kernel
or by a sum, from its own, or as it is on the shared side."""


def at_width(prog: Program, keep: Mapping[str, np.ndarray]) -> Program:
    """A program at other widths."""
    return prog._replace(evaluator=Evaluator(kept_of(prog.groups, keep)))


def summed_by(frame: Frame, index: int) -> list[Var]:
    """The axes that an equation sums over; of a loop or a branch, all within it."""
    site = frame.sites.get(index)
    found = [] if site is None else [*site.inner]
    for sub in frame.subs.get(index, ()):
        found += [axis for at in _sites(sub) for axis in summed_by(sub, at)]
    return found


def summing(frame: Frame) -> list[int]:
    """The equations that sum over axes.

    A loop that stays one is a single equation: nothing within it reads both sides.
    """
    return [index for index in _sites(frame) if summed_by(frame, index)]


def _sites(frame: Frame) -> list[int]:
    return sorted({*frame.sites, *frame.subs})


def way_of(shared: Program, own: Program, index: int, free: Collection[str]) -> str:
    """How a network's side evaluates an equation that sums over channels.

    Args:
        shared: the architecture at the shared width.
        own: at the width of a network's own channels.
        index: of the equation.
        free: the groups that are not pinned.

    Raises:
        Torn: a sum over channels of which some are shared, and no kernel mixes them.
    """
    eqn = own.frame.jaxpr.eqns[index]
    found = channels_of(own, summed_by(own.frame, index), free)
    split = [n for n in found if _width(shared, n) and _width(own, n)]
    whole = [n for n in found if _width(shared, n) and n not in split]
    # A loop makes several results: what is empty of one says nothing of the others.
    outs = [own.frame.values[var].dims for var in eqn.outvars]
    some = [dims for dims in outs if all(map(own.evaluator.k.count, dims))]
    made = [channels_of(own, dims, free) for dims in some]
    if (not split and not whole) or not made:
        return ALONE  # nothing that it reads is shared, or nothing that it makes is own
    reader = own.reader(index) if index in own.frame.sites else None
    if reader is not None and is_sum(reader):
        return SUMMED
    why = "no kernel mixes them " + ("here" if reader else "within a loop or branch")
    names = [name for names in made for name in names]
    none = not split and not any(_width(own, name) for name in names)
    if none and names:
        return TAKEN  # its own would be only what lies beside channels
    if reader is not None and is_matrix(reader) and _plain_kernel(own, reader):
        if split and not _one_axis(own, reader, free):
            raise Torn(found, "two groups are merged in one contraction", eqn)
        if not set(found) & set(names) or _moves(own, index):
            return MIXING
        why = "the kernel reads and makes it"
    elif reader is not None and _computed_kernel(own, reader):
        if not split and not set(found) & set(names):
            return MIXING
        why = "the kernel is computed from parameters"
    if none:
        return TAKEN
    raise Torn([*split, *whole], why, eqn)


def _plain_kernel(prog: Program, reader: Reader) -> bool:
    """Whether the kernel is a parameter as it stands, of one group."""
    if reader.eqn.invars[1 - reader.site.at] not in prog.origins:
        return False
    return not is_conv(reader) or reader.eqn.params["feature_group_count"] == 1


def _computed_kernel(prog: Program, reader: Reader) -> bool:
    """Whether the kernel is made of parameters, of one group, not just moved."""
    kernel = reader.eqn.invars[1 - reader.site.at]
    if not is_matrix(reader) or kernel in prog.origins or not behind(prog, kernel):
        return False
    return not is_conv(reader) or reader.eqn.params["feature_group_count"] == 1


def _moves(prog: Program, index: int) -> bool:
    """Whether a kernel that reads and makes a group can be made of its parameter.

    Its two axes would be cut differently, which an equation on its way (a layer of a
    stack that is picked) cannot: there an axis is known by its group alone.
    """
    kernel, eqns = prog.kernel(index), prog.frame.jaxpr.eqns
    param = prog.frame.jaxpr.invars[prog.origins[kernel]]
    way = needs(prog, [kernel], known=[param])
    return all(eqns[at].primitive in AT_ANY_WIDTH for at in way)


def _width(prog: Program, name: str) -> int:
    return prog.evaluator.k.count(prog.groups[name])


def _one_axis(prog: Program, reader: Reader, free: Collection[str]) -> bool:
    """Whether the channels that are contracted lie in one axis, end to end."""
    dims = reader.ins[reader.site.at].dims
    axes = channel_axes(reader, reader.site.at)
    held = [dims[axis] for axis in axes if channels_of(prog, [dims[axis]], free)]
    return len(held) == 1 and not any(across(prog, held, free))
