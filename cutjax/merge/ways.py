"""How each network's side of a merged function gets the result of an equation."""

from collections.abc import Collection, Mapping

import numpy as np

from cutjax.merge.crossed import Torn, across, channels_of
from cutjax.merge.sums import is_sum
from cutjax.readers import channel_axes, is_conv
from cutjax.recover.program import Program
from cutjax.recover.rows import is_matrix
from cutjax.resize import Evaluator, Reader, kept_of

MIXING, SUMMED, ALONE, TAKEN = "mixing", "summed", "alone", "taken"
"""How a network's side gets the result of an equation: from both operands by a kernel
or by a sum, from its own, or as it is on the shared side."""


def at_width(prog: Program, keep: Mapping[str, np.ndarray]) -> Program:
    """A program at other widths."""
    return prog._replace(evaluator=Evaluator(kept_of(prog.groups, keep)))


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
    reader = own.reader(index)
    found = channels_of(own, reader.site.inner, free)
    split = [n for n in found if _width(shared, n) and _width(own, n)]
    whole = [n for n in found if _width(shared, n) and n not in split]
    made = {n for v in reader.outs for n in channels_of(own, v.dims, free)}
    if (not split and not whole) or any(_width(own, n) == 0 for n in made):
        return ALONE  # nothing that it reads is shared, or nothing that it makes is own
    if is_sum(reader):
        return SUMMED
    if is_matrix(reader) and _plain_kernel(own, reader):
        if split and not _one_axis(own, reader, free):
            raise Torn(found, "two groups are merged in one contraction", reader.eqn)
        return MIXING
    if not split and not made:
        return TAKEN
    raise Torn([*split, *whole], "no kernel mixes them here", reader.eqn)


def _plain_kernel(prog: Program, reader: Reader) -> bool:
    """Whether the kernel is a parameter as it stands, of one group."""
    if reader.eqn.invars[1 - reader.site.at] not in prog.origins:
        return False
    return not is_conv(reader) or reader.eqn.params["feature_group_count"] == 1


def _width(prog: Program, name: str) -> int:
    return prog.evaluator.k.count(prog.groups[name])


def _one_axis(prog: Program, reader: Reader, free: Collection[str]) -> bool:
    """Whether the channels that are contracted lie in one axis, end to end."""
    dims = reader.ins[reader.site.at].dims
    axes = channel_axes(reader, reader.site.at)
    held = [dims[axis] for axis in axes if channels_of(prog, [dims[axis]], free)]
    return len(held) == 1 and not any(across(prog, held, free))
