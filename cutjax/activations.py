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
    data = _data(walker)
    found: dict[Any, tuple[Frame, Any, dict[str, None]]] = {}
    for term, tasks in zip(walker.terms, served, strict=True):
        for atom in term.frame.jaxpr.eqns[term.index].invars:
            if isinstance(atom, Literal):
                continue
            frame, var = origin(term.frame, atom)
            if not data(frame, var):
                continue
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
    atoms = _handed(frame, above.jaxpr.eqns[index], above.subs[index])
    at = _places(frame.jaxpr.invars)[var]
    found = atoms[at] if at < len(atoms) else None
    return None if found is None or isinstance(found, Literal) else (above, found)


def _handed(frame: Frame, eqn: Any, subs: Sequence[Frame]) -> Sequence[Any]:
    """The operands that the first arguments of a nested frame are, unchanged."""
    p, atoms = eqn.params, list(eqn.invars)
    if "branches" in p:
        return atoms[1:]
    if "length" in p:
        return atoms[: scan_counts(p)[0]]
    if "body_nconsts" in p:
        first = p["cond_nconsts"]
        both = atoms[:first], atoms[first : first + p["body_nconsts"]]
        return both[0] if frame is subs[0] else both[1]
    same = len(subs) == 1 and len(frame.jaxpr.invars) == len(atoms)
    return atoms if same else []


def _data(walker: Walker) -> Callable[[Frame, Any], bool]:
    """Whether an array depends on the inputs.

    The walk calls data whatever a loop reads, which is safe for couplings, but no
    answer here: with loops this is followed again.
    """
    top = walker.frames[0]
    if not any(map(_looped, walker.frames)):
        return lambda frame, var: frame.values[var].data
    known: dict[int, dict[Any, bool]] = {}
    _follow(top, [top.values[v].data for v in top.jaxpr.invars], known)
    return lambda frame, var: known[id(frame)].get(var, False)


def _looped(frame: Frame) -> bool:
    if frame.outer is None:
        return False
    above, index = frame.outer
    return not {"length", "body_nconsts"}.isdisjoint(above.jaxpr.eqns[index].params)


def _follow(
    frame: Frame, ins: Sequence[bool], known: dict[int, dict[Any, bool]]
) -> list[bool]:
    """What in a frame depends on the inputs; of loops, what they carry if any does."""
    env = known[id(frame)] = dict(zip(frame.jaxpr.invars, ins, strict=True))

    def read(atom: Any) -> bool:
        return not isinstance(atom, Literal) and env.get(atom, False)

    for index, eqn in enumerate(frame.jaxpr.eqns):
        subs, every = frame.subs.get(index, []), any(map(read, eqn.invars))
        outs = [every] * len(eqn.outvars)
        for sub in subs:
            given = list(map(read, _handed(sub, eqn, subs)))
            if "length" in eqn.params:
                consts, carried = scan_counts(eqn.params)
                given += [every] * carried
                given += map(read, eqn.invars[consts + carried :])
            rest = len(sub.jaxpr.invars) - len(given)
            inner = _follow(sub, given + [every] * rest, known)
            outs = inner if _is_call(eqn, subs) else outs
        env.update(zip(eqn.outvars, outs, strict=True))
    return list(map(read, frame.jaxpr.outvars))


def _is_call(eqn: Any, subs: Sequence[Frame]) -> bool:
    once = len(subs) == 1 and not {"length", "branches"} & set(eqn.params)
    return once and len(subs[0].jaxpr.outvars) == len(eqn.outvars)


def _result(frame: Frame, var: Any) -> tuple[Frame, Any] | None:
    """Where a result of a nested call is computed; None if it is not one."""
    index = frame.makers.get(var)
    if index is None or index not in frame.subs:
        return None
    eqn, subs = frame.jaxpr.eqns[index], frame.subs[index]
    if not _is_call(eqn, subs):
        return None
    sub = subs[0]
    found = sub.jaxpr.outvars[_places(eqn.outvars)[var]]
    return None if isinstance(found, Literal) else (sub, found)


def _places(some: Iterable[Any]) -> dict[Any, int]:
    return {v: i for i, v in enumerate(some) if not isinstance(v, Literal)}


def _itemsize(var: Any) -> int:
    return int(getattr(var.aval.dtype, "itemsize", 0))
