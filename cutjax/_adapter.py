"""What the adapters for module classes share: the sizes that layers remember."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from cutjax.dims import Axis, Concat, Keep, Product, count, kept
from cutjax.errors import CutjaxError, suggest
from cutjax.graph import Graph

Fields = Mapping[str, Any]
Edit = Callable[[Any, Any], Fields]
Modules = Mapping[str, Any]
"""Modules by path, those within others first."""


class Axes(NamedTuple):
    """The axes of the parameters below a layer, by path from there, and the keep."""

    own: Mapping[str, tuple[Axis, ...]]
    keep: Keep

    def groups(self, name: str, total: int, axis: int = -1) -> int:
        """How many of `total` equal groups are left along an axis of a parameter."""
        widths = {group: int(np.sum(mask)) for group, mask in self.keep.items()}
        return _groups(self.own[name][axis], total, widths)

    def cut(self, name: str, array: Any) -> Any:
        """An array of a parameter's shape, cut as the parameter."""
        for i, axis in enumerate(self.own[name]):
            array = array.take(np.flatnonzero(kept(axis, self.keep)), axis=i)
        return array


Entry = Callable[[Any, Any, Axes], Fields]
Table = Mapping[type, Entry]


def _groups(axis: Axis, total: int, widths: Mapping[str, int]) -> int:
    """How many of `total` equal groups along `axis` are left."""
    if total == 1 or count(axis, widths) == axis.size:
        return total
    if axis.size == total:
        return count(axis, widths)
    match axis:
        case Product((first, *rest)) if total % first.size == 0:
            inner = _groups(Product(tuple(rest)), total // first.size, widths)
            return count(first, widths) * inner
        case Product((first, *_)) if first.size % total == 0:
            return _groups(first, total, widths)
        case Concat(parts) if all(p.size % (axis.size // total) == 0 for p in parts):
            each = axis.size // total
            return sum(_groups(part, part.size // each, widths) for part in parts)
    raise CutjaxError(f"{total} groups do not fit an axis that was cut as {axis}")


def entry(cls: type, table: Mapping[type, Any]) -> Any:
    """The entry of a class or of its nearest parent, or None."""
    return next((table[base] for base in cls.__mro__ if base in table), None)


def new_fields(
    old: Modules,
    new: Modules,
    table: Table,
    edit: Mapping[type, Edit],
    graph: Graph,
    keep: Keep,
) -> Iterable[tuple[Any, str, Any]]:
    """What to set in the new modules, those within first: (module, field, value).

    Args:
        old: the full modules.
        new: the new ones; what was yielded must be set before the next is asked for.
        table: what the library's layers remember.
        edit: what the user's classes remember.
        graph: the graph.
        keep: the keep.

    Yields:
        Fields whose value is another than before.

    Raises:
        CutjaxError: the edit names a class or field that is not there.
    """
    classes = {cls for module in old.values() for cls in type(module).__mro__}
    for cls in edit:
        if cls not in classes:
            names = {type(m).__name__ for m in old.values()}
            raise CutjaxError(
                f"edit={{{cls.__name__}: ...}}: the model holds no {cls.__name__}; "
                f"{suggest(cls.__name__, names)}"
            )
    for path, module in new.items():
        known, own = entry(type(module), table), entry(type(module), edit)
        fields = dict(
            known(old[path], module, _below(path, graph, keep)) if known else {}
        )
        yield from _changed(module, fields)
        yield from _changed(module, own(old[path], module) if own else {})


def _below(path: str, graph: Graph, keep: Keep) -> Axes:
    start = f"{path}/" if path else ""
    named = graph.axes.items()
    return Axes({n[len(start) :]: a for n, a in named if n.startswith(start)}, keep)


def _changed(module: Any, fields: Fields) -> Iterable[tuple[Any, str, Any]]:
    for name, value in fields.items():
        if not hasattr(module, name):
            raise CutjaxError(
                f"edit sets {name!r}, which {type(module).__name__} does not have; "
                f"{suggest(name, vars(module))}"
            )
        if value is not getattr(module, name):
            yield module, name, value
