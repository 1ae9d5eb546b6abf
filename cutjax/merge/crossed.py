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


class Torn(KeepError):
    """Groups that cannot be shared in part, and why, at an equation."""

    def __init__(self, names: Sequence[str], why: str, eqn: Any) -> None:
        self.groups = tuple(dict.fromkeys(names))
        super().__init__(
            f"{', '.join(map(repr, self.groups))} cannot be shared in part: {why}\n"
            f"  at {user_line(eqn.source_info)}\n"
            "  try: share all of these groups whole, or none of them and of what they "
            "enter; see `cutjax.merge.until`"
        )


def check_crossed(shared: Program, own: Program, free: Collection[str]) -> None:
    """Check that no array of a network has shared channels across its own.

    Args:
        shared: the architecture at the shared width.
        own: at the width of a network's own channels.
        free: the groups that are not pinned.

    Raises:
        Torn: names the groups and the line.
    """
    sound: set[tuple[str, str]] = set()
    for index in needs(own, own.frame.jaxpr.outvars):
        eqn = own.frame.jaxpr.eqns[index]
        for value in (own.frame.values[var] for var in eqn.outvars):
            if not value.data:
                continue
            for pair in across(own, value.dims, free):
                if pair not in sound and _torn(shared, own, *pair):
                    raise Torn(pair, "an array has channels of both", eqn)
                sound.add(pair)


def across(
    prog: Program, dims: Sequence[Var], free: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Groups that lie across each other, a group perhaps across itself.

    Along two axes, or multiplied in one: heads and their width.
    """
    held = [channels_of(prog, [d], free) for d in dims]
    for one, other in itertools.combinations(held, 2):
        yield from itertools.product(one, other)
    for root in map(find, dims):
        if root.form is not None:
            parts = parts_of(root)
            for inner in [parts] if root.form == PRODUCT else [[p] for p in parts]:
                yield from across(prog, inner, free)


def channels_of(prog: Program, dims: Sequence[Var], free: Collection[str]) -> list[str]:
    """The groups of these whose channels some dimensions hold."""
    found = [prog.evaluator.k.name(v) or "" for d in dims for v in leaf_vars(d)]
    return list(dict.fromkeys(name for name in found if name in free))


def _torn(shared: Program, own: Program, a: str, b: str) -> bool:
    """Whether shared channels of one would lie across own channels of the other."""
    common = [shared.evaluator.k.count(shared.groups[name]) for name in (a, b)]
    alone = [own.evaluator.k.count(own.groups[name]) for name in (a, b)]
    return bool((common[0] and alone[1]) or (alone[0] and common[1]))
