"""The distinct arrays that contractions read, for the memory that they take."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cutjax._compat import Literal, scan_counts
from cutjax.cost import Activation
from cutjax.dims import Axis
from cutjax.unify import Var
from cutjax.walk import Frame, Walker


def activations_of(
    walker: Walker,
    freeze: Callable[[Var], Axis],
    served: Sequence[tuple[str, ...]],
) -> tuple[Activation, ...]:
    """The arrays that depend on the inputs and that some contraction reads.

    An array is one variable of the jaxpr. The argument of a nested call is that of its
    caller, and its result that of its body; in a loop or a branch this holds for what
    it only reads.

    Args:
        walker: after the walk.
        freeze: the axis of a variable.
        served: the tasks of each of its terms.

    Returns:
        Each array once, in the order in which they are read first.
    """
    found: dict[Any, tuple[Frame, Any, dict[str, None]]] = {}
    for term, tasks in zip(walker.terms, served, strict=True):
        for atom in term.frame.jaxpr.eqns[term.index].invars:
            if isinstance(atom, Literal) or not term.frame.read(atom).data:
                continue
            frame, var = origin(term.frame, atom)
            _, _, known = found.setdefault((id(frame), var), (frame, var, {}))
            known.update(dict.fromkeys(tasks))
    return tuple(
        Activation(
            frame.times * _itemsize(var),
            tuple(map(freeze, frame.read(var).dims)),
            tuple(tasks),
        )
        for frame, var, tasks in found.values()
    )


def origin(frame: Frame, var: Any) -> tuple[Frame, Any]:
    """The outermost frame in which an array lives, and its variable there."""
    while True:
        inner = _result(frame, var)
        if inner is not None:
            frame, var = inner
            continue
        outer = _argument(frame, var)
        if outer is None:
            return frame, var
        frame, var = outer


def _argument(frame: Frame, var: Any) -> tuple[Frame, Any] | None:
    """Where an argument of a nested frame comes from; None if it is no such."""
    if frame.outer is None or var not in _places(frame.jaxpr.invars):
        return None
    above, index = frame.outer
    eqn, at = above.jaxpr.eqns[index], _places(frame.jaxpr.invars)[var]
    atoms = list(eqn.invars)
    if "branches" in eqn.params:
        atoms = atoms[1:]
    elif "length" in eqn.params:
        atoms = atoms[: scan_counts(eqn.params)[0]]
    elif len(above.subs[index]) != 1 or len(frame.jaxpr.invars) != len(atoms):
        return None
    found = atoms[at] if at < len(atoms) else None
    return None if found is None or isinstance(found, Literal) else (above, found)


def _result(frame: Frame, var: Any) -> tuple[Frame, Any] | None:
    """Where a result of a nested call is computed; None if it is not one."""
    index = frame.makers.get(var)
    subs = frame.subs.get(index, []) if index is not None else []
    if len(subs) != 1:
        return None
    eqn, sub = frame.jaxpr.eqns[index], subs[0]  # type: ignore[index]
    loop = "length" in eqn.params or "branches" in eqn.params
    if loop or len(sub.jaxpr.outvars) != len(eqn.outvars):
        return None
    found = sub.jaxpr.outvars[_places(eqn.outvars)[var]]
    return None if isinstance(found, Literal) else (sub, found)


def _places(some: Iterable[Any]) -> dict[Any, int]:
    return {v: i for i, v in enumerate(some) if not isinstance(v, Literal)}


def _itemsize(var: Any) -> int:
    return int(getattr(var.aval.dtype, "itemsize", 0))
