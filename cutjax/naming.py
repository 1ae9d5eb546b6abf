"""Names of groups: where the weight that makes the channels holds them."""

from collections.abc import Mapping, Sequence

from cutjax.unify import WINDOW, Pin, Var, find, leaf_vars
from cutjax.walk import Walker

Place = tuple[str, int, int]
"""Path of a parameter, axis, and how many-eth group of that axis (-1: the only one)."""


UNUSED = "not used here; trace what uses it as well, and it can be cut along"


def pin_unused(walker: Walker, axes: Mapping[str, tuple[Var, ...]]) -> None:
    """Pin what no equation uses: whole parameters, and what slices leave behind.

    Another function over the same parameters may use it, tied to who knows what.

    Args:
        walker: after its walk.
        axes: the variables of each parameter, by path.
    """
    made = (frame.values[v].dims for frame in walker.frames for v in frame.makers)
    summed = (dims for dims, _ in walker.sums.values())
    roots = {find(d) for some in (made, summed) for dims in some for d in dims}
    used = {leaf for root in roots for leaf in leaf_vars(root)}
    for i, dims in enumerate(axes.values()):
        for leaf in (leaf for d in dims for leaf in leaf_vars(d)):
            if i not in walker.used or leaf not in used:
                walker.solver.pin(leaf, UNUSED)


def pin_crumbs(walker: Walker, axes: Mapping[str, tuple[Var, ...]]) -> None:
    """Axes of parameters that fell into single channels are whole again, and pinned.

    Args:
        walker: after its walk.
        axes: the variables of each parameter, by path.
    """
    fallen = {
        find(d)
        for dims in axes.values()
        for d in dims
        if d.size > 1 and all(var.size <= 1 for var in leaf_vars(d))
    }
    for a, b, where in walker.solver.links:
        for var in {find(a), find(b)} & fallen:
            fallen.discard(var)
            var.form, var.parts = None, ()
            var.pins.append(Pin("taken apart into single channels", where))


def names_of(walker: Walker, axes: Mapping[str, tuple[Var, ...]]) -> dict[Var, str]:
    """A name for every free variable in the axes of the parameters.

    Args:
        walker: after its walk.
        axes: the variables of each parameter, by path, in the order of the pytree.

    Returns:
        Variable -> `path:axis` (`path:axis.n` if that axis holds several groups), in
        order of use.
    """
    paths = list(axes)
    places: dict[Var, list[Place]] = {}
    for path, dims in axes.items():
        for axis, d in enumerate(dims):
            several = [v for v in leaf_vars(d) if v.size > 1]
            for at, var in enumerate(several):
                nth = at if len(several) > 1 else -1
                places.setdefault(var, []).append((path, axis, nth))
    makers: dict[Var, list[str]] = {}
    for param, made in walker.makers:
        for d in made:
            for var in leaf_vars(d):
                makers.setdefault(var, []).append(paths[param])
    order = {paths[i]: n for i, n in walker.used.items()}
    names = {}
    for var, found in places.items():
        if var.pins and all(pin.reason == WINDOW for pin in var.pins):
            continue
        path, axis, nth = _maker(found, makers.get(var, ()), order)
        names[var] = f"{path}:{axis}" + (f".{nth}" if nth >= 0 else "")
    return dict(sorted(names.items(), key=lambda kv: _rank(kv[1], order)))


def _maker(
    places: Sequence[Place], makers: Sequence[str], order: Mapping[str, int]
) -> Place:
    """The place that names a group: in its first maker, else in its first user."""
    by_path = {place[0]: place for place in reversed(places)}
    for path in makers:
        if path in by_path:
            return by_path[path]
    return min(places, key=lambda p: (order.get(p[0], len(order)), p))


def _rank(name: str, order: Mapping[str, int]) -> tuple[int, str]:
    path = name.rpartition(":")[0]
    return order.get(path, len(order)), name
