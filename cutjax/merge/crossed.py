"""Arrays of two groups: their channels are shared alike, or the merge would lose some.

A merged network has the shared channels and each network's own, not the products of
both: of an array with channels along two axes, shared ones along one and own ones along
the other would be neither's.
"""

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from cutjax._compat import user_line
from cutjax.errors import KeepError
from cutjax.recover.program import Program, needs
from cutjax.unify import PRODUCT, Var, find, leaf_vars, parts_of


def check_crossed(shared: Program, own: Program, free: Collection[str]) -> None:
    """Check that no array of a network has shared channels across its own.

    Args:
        shared: the architecture at the shared width.
        own: at the width of a network's own channels.
        free: the groups that are not pinned.

    Raises:
        KeepError: names the groups and the line.
    """
    sound: set[tuple[str, str]] = set()
    for index in needs(own, own.frame.jaxpr.outvars):
        eqn = own.frame.jaxpr.eqns[index]
        for value in (own.frame.values[var] for var in eqn.outvars):
            if not value.data:
                continue
            for pair in _pairs(own, value.dims, free):
                if pair not in sound and _torn(shared, own, *pair):
                    raise _refused(pair, eqn)
                sound.add(pair)


def _pairs(
    prog: Program, dims: Sequence[Var], free: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Groups that lie across each other; a group may lie across itself."""
    factors = [
        {prog.evaluator.k.name(v) or "" for v in leaf_vars(f)} & {*free}
        for d in dims
        for f in _factors(d)
    ]
    for one, other in itertools.combinations(filter(None, factors), 2):
        yield from itertools.product(sorted(one), sorted(other))


def _factors(var: Var) -> list[Var]:
    """What is multiplied in an axis, such as heads and their width."""
    root = find(var)
    if root.form is None:
        return [root]
    inner = [_factors(part) for part in parts_of(root)]
    if root.form == PRODUCT:
        return [factor for factors in inner for factor in factors]
    return max(inner, key=len) if any(len(f) > 1 for f in inner) else [root]


def _torn(shared: Program, own: Program, a: str, b: str) -> bool:
    """Whether shared channels of one would lie across own channels of the other."""
    common = [shared.evaluator.k.count(shared.groups[name]) for name in (a, b)]
    alone = [own.evaluator.k.count(own.groups[name]) for name in (a, b)]
    return bool((common[0] and alone[1]) or (alone[0] and common[1]))


def _refused(pair: tuple[str, str], eqn: Any) -> KeepError:
    names = ", ".join(map(repr, dict.fromkeys(pair)))
    return KeepError(
        f"{names} cannot be shared in part: an array has channels of both, along two "
        f"axes\n  at {user_line(eqn.source_info)}\n"
        "  try: share all of these groups whole, or leave all of them to each network; "
        "see `cutjax.merge.until`"
    )
