"""Normalisations by running statistics, found in a function in inference."""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from cutjax._compat import Literal
from cutjax.recover.follow import ADD, SUB, is_affine
from cutjax.recover.program import Program, behind, positions, terminals


class Norm(NamedTuple):
    """A normalisation by running statistics: `(x - mean) / f(var) * scale + bias`.

    `x`, `y`: the variables that it starts and ends with. `mean`, `var`, `scale`,
    `bias`: numbers of the parameters. `at`: along the axes of `x`, which entry of these
    normalises what.
    """

    x: Any
    y: Any
    mean: int
    var: int
    scale: int
    bias: int
    at: Int[np.ndarray, "..."]

    @property
    def numbers(self) -> dict[str, int]:
        """Of its parameters, by what they are."""
        return dict(zip(self._fields[2:6], self[2:6], strict=True))


def norms_of(prog: Program, moving: Collection[int]) -> Iterator[Norm]:
    """Those that have a scale and a bias of their own.

    Args:
        prog: a function in inference.
        moving: numbers of the parameters that are running statistics.
    """
    eqns = prog.frame.jaxpr.eqns
    for index, eqn in enumerate(eqns):
        if eqn.primitive is not SUB or isinstance(eqn.invars[1], Literal):
            continue
        x, mean = eqn.invars
        if prog.origins.get(mean) in moving and prog.frame.read(x).data:
            found = _norm(prog, index, moving)
            if found is not None and _alone(prog, found):
                yield found


def _norm(prog: Program, start: int, moving: Collection[int]) -> Norm | None:
    """Follow what a running mean was taken from to the bias that ends it."""
    eqns = prog.frame.jaxpr.eqns
    x, moved = eqns[start].invars
    mean, (var,) = prog.origins[moved], eqns[start].outvars
    factors: set[int] = set()
    while len(users := prog.users.get(var, ())) == 1 and users[0] >= 0:
        eqn = eqns[users[0]]
        other = [atom for atom in eqn.invars if atom is not var]
        if len(other) != 1 or not is_affine(eqn.primitive, eqn.invars.index(var)):
            return None
        held, (var,) = behind(prog, other[0]), eqn.outvars
        if eqn.primitive not in ADD:
            factors |= held
        else:
            bias = None if isinstance(other[0], Literal) else prog.origins.get(other[0])
            variances, scales = factors & {*moving}, factors - {*moving}
            if bias in {*moving, None} or not len(variances) == len(scales) == 1:
                return None
            numbers = (*variances, *scales, bias, _positions(prog, moved, mean))
            return Norm(x, var, mean, *numbers)  # type: ignore[call-arg]
    return None


def _positions(prog: Program, moved: Any, number: int) -> Int[np.ndarray, "..."]:
    """Which entry of a parameter stands where in its moved copy; one along the axes
    where all is the same."""
    at = positions(prog, moved, prog.frame.jaxpr.invars[number].aval.shape)
    for axis in range(at.ndim):
        first = at.take([0], axis)
        at = first if (at == first).all() else at
    return at


def _alone(prog: Program, norm: Norm) -> bool:
    """Whether its parameters serve it alone, one number each per channel."""
    numbers = norm.numbers.values()
    shapes = [prog.frame.jaxpr.invars[i].aval.shape for i in numbers]
    alike = len(set(shapes)) == 1
    channels = np.unique(norm.at).size == norm.at.size == np.prod(shapes[0])
    return alike and channels and all(len(terminals(prog, i)) == 1 for i in numbers)
