"""Branches scaled per channel before they are added to a stream: LayerScale."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from cutjax._compat import Literal
from cutjax.recover.follow import ADD, MUL
from cutjax.recover.program import MOVES, Program, terminals
from cutjax.recover.rows import is_matrix
from cutjax.unify import find


class Branch(NamedTuple):
    """A scale per channel of what a kernel makes, before it is added to others.

    `number`: of the parameter; `makers`: of the kernel and of its bias.
    """

    number: int
    makers: tuple[int, ...]


def branches(prog: Program, name: str) -> Iterator[Branch]:
    """Those that end in the channels of a group.

    Args:
        prog: the program.
        name: of the group.
    """
    group = find(prog.groups[name])
    for index in prog.frame.sites:
        (out,) = prog.frame.jaxpr.eqns[index].outvars
        mine = any(find(dim) is group for dim in prog.frame.values[out].dims)
        if mine and is_matrix(prog.reader(index)):
            found = _branch(prog, index, out)
            if found is not None:
                yield found


def _branch(prog: Program, start: int, var: Any) -> Branch | None:
    """Follow what a kernel makes, over its bias, to a product with a parameter."""
    kernel = prog.origins.get(prog.kernel(start))
    makers: dict[int, int] = {} if kernel is None else {kernel: start}
    while len(users := prog.users.get(var, ())) == 1 and users[0] >= 0:
        eqn = prog.frame.jaxpr.eqns[users[0]]
        others = [atom for atom in eqn.invars if atom is not var]
        found = [prog.origins.get(a) for a in others if not isinstance(a, Literal)]
        if eqn.primitive is MUL or eqn.primitive in ADD:
            number = found[0] if len(found) == 1 else None
            if number is None or not makers:
                return None
            makers[number] = users[0]
        elif eqn.primitive not in MOVES or len(eqn.outvars) > 1:
            return None
        if eqn.primitive is MUL:
            *others, scale = makers
            alone = all(terminals(prog, n) == {at} for n, at in makers.items())
            return Branch(scale, tuple(others)) if alone else None
        (var,) = eqn.outvars
    return None
