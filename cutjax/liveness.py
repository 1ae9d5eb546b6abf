"""Which outputs each equation and each input of a frame serves."""

from collections.abc import Sequence

from cutjax._compat import Literal
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
        every = 0
        for b in served:
            every |= b
        if not every:
            continue
        marks[id(frame), index] = every
        subs = frame.subs.get(index, [])
        through = len(subs) == 1 and _same_arity(subs[0], eqn)
        if through:
            needed = _back(subs[0], served, marks)
        else:
            # Loops and branches: everything inside may serve everything outside.
            for sub in subs:
                _back(sub, [every] * len(sub.jaxpr.outvars), marks)
            needed = [every] * len(eqn.invars)
        for atom, more in zip(eqn.invars, needed, strict=True):
            serve(atom, more)
    return [bits.get(var, 0) for var in frame.jaxpr.invars]


def _same_arity(sub: Frame, eqn) -> bool:
    # A scan has these arities too, but its carry feeds back into itself.
    same = len(sub.jaxpr.invars) == len(eqn.invars)
    loop = "length" in eqn.params
    return same and not loop and len(sub.jaxpr.outvars) == len(eqn.outvars)
