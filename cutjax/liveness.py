"""Which outputs each equation and each input of a frame serves."""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

from cutjax._compat import Literal, scan_counts
from cutjax.walk import Frame

Marks = dict[tuple[int, int], int]


def mark(frame: Frame, outs: Sequence[int]) -> tuple[Marks, list[int]]:
    """Walk a frame backwards.

    Args:
        frame: an inferred jaxpr.
        outs: one set of bits per output (a bit per task).

    Returns:
        The bits of each equation, by (id of its frame, index); the bits of each input.
    """
    marks: Marks = {}
    return marks, _back(frame, outs, marks)


def _back(frame: Frame, outs: Sequence[int], marks: Marks) -> list[int]:
    bits: dict = {}

    def serve(atom, more: int) -> None:
        if not isinstance(atom, Literal):
            bits[atom] = bits.get(atom, 0) | more

    for atom, more in zip(frame.jaxpr.outvars, outs, strict=True):
        serve(atom, more)
    for index in range(len(frame.jaxpr.eqns) - 1, -1, -1):
        eqn = frame.jaxpr.eqns[index]
        served = [bits.get(var, 0) for var in eqn.outvars]
        every = reduce(or_, served, 0)
        if not every:
            continue
        marks[id(frame), index] = every
        needed = _within(frame.subs.get(index, []), eqn, served, every, marks)
        for atom, more in zip(eqn.invars, needed, strict=True):
            serve(atom, more)
    return [bits.get(var, 0) for var in frame.jaxpr.invars]


def _within(
    subs: Sequence[Frame], eqn: Any, served: list[int], every: int, marks: Marks
) -> list[int]:
    """What each operand of an equation serves, through the frames nested in it."""
    if "branches" in eqn.params:
        several = [_back(sub, served, marks) for sub in subs]
        return [every, *(reduce(or_, bits) for bits in zip(*several, strict=True))]
    if len(subs) == 1 and len(subs[0].jaxpr.invars) == len(eqn.invars):
        if "length" in eqn.params:
            return _scan(subs[0], eqn, served, marks)
        if len(subs[0].jaxpr.outvars) == len(eqn.outvars):
            return _back(subs[0], served, marks)
    # Other loops: everything inside may serve everything outside.
    for sub in subs:
        _back(sub, [every] * len(sub.jaxpr.outvars), marks)
    return [every] * len(eqn.invars)


def _scan(sub: Frame, eqn: Any, served: list[int], marks: Marks) -> list[int]:
    """What is carried serves what it serves in any later step."""
    consts, carried = scan_counts(eqn.params)
    while True:
        needed = _back(sub, served, marks)
        carry = needed[consts : consts + carried]
        after = [*map(or_, served, carry), *served[carried:]]
        if after == served:
            return needed
        served = after
