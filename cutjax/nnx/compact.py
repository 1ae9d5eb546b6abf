"""`cut`: a smaller NNX module of the same classes, proven against the function."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from cutjax.dims import Keep
from cutjax.errors import CutjaxError, suggest
from cutjax.graph import Graph
from cutjax.nnx.layers import LAYERS, Axes, entry
from cutjax.nnx.proof import prove
from cutjax.nnx.state import Call, named_modules, parts
from cutjax.shrink import cut_params

Edit = Callable[[Any, Any], Mapping[str, Any]]


def cut(
    model: Any,
    graph: Graph,
    keep: Keep,
    *inputs: Any,
    params: Any = None,
    edit: Mapping[type, Edit] | None = None,
    call: Call | None = None,
) -> Any:
    """A smaller module of the same classes, whose layers report their new sizes.

    It computes what `cutjax.cut(apply, params, graph, keep)` computes of the module's
    `split` form; that is checked, always, on inputs of the traced shapes. Where NNX
    derives a scale from a width (1/sqrt(head width)), the scale of the full module is
    folded into the queries. All tasks are answered: for some of them only, use
    `cutjax.cut(*cutjax.nnx.split(model), graph, keep, tasks=...)`, a function.

    Args:
        model: the full module; it is not changed. The new one is in the same mode, with
            the same random streams, and trains as any other.
        graph: from `cutjax.nnx.trace(model, *inputs)`.
        keep: the channels to keep.
        *inputs: what to check with; random arrays of the traced shapes, if not given.
        params: small parameters to put in, as from `cutjax.compensate`; those of the
            model, cut, if not given.
        edit: for classes of your own that remember sizes: `{Attention: lambda old, new:
            {"num_heads": new.query.out_features // old.width}}`. Children come first:
            the layers within `new` are small already.
        call: as given to `trace`.

    Returns:
        The smaller module.

    Raises:
        CutjaxError: the module's own code does not work at these widths, or computes
            something else: the message names the class and what to do.
        KeepError: the keep does not fit the graph.
        MismatchError: the parameters do not match the graph.
    """
    whole = parts(model)
    small = cut_params(whole.params, graph, keep)
    small = small if params is None else params
    new = whole.merge(jax.tree.map(lambda leaf: leaf, small))
    _resize(model, new, graph, keep, dict(edit or {}))
    prove(model, new, small, graph, keep, inputs, call)
    return new


def _resize(
    model: Any, new: Any, graph: Graph, keep: Keep, edit: Mapping[type, Edit]
) -> None:
    """Set the sizes that every layer remembers, those within first."""
    old, used = named_modules(model), set()
    for path, layer in named_modules(new).items():
        known = entry(type(layer), LAYERS)
        if known is not None:
            axes = Axes(_own(path, graph), keep)
            _set(layer, known(old[path], layer, axes))
        own = entry(type(layer), edit)
        if own is not None:
            used.add(own)
            _set(layer, own(old[path], layer))
    for cls, function in edit.items():
        if function not in used:
            classes = {type(m).__name__ for m in old.values()}
            raise CutjaxError(
                f"edit={{{cls.__name__}: ...}}: the model holds no {cls.__name__}; "
                f"{suggest(cls.__name__, classes)}"
            )


def _own(path: str, graph: Graph) -> dict[str, Any]:
    """Axes of the parameters that belong to the layer itself, by name."""
    start = f"{path}/" if path else ""
    return {
        name[len(start) :]: axes
        for name, axes in graph.axes.items()
        if name.startswith(start) and "/" not in name[len(start) :]
    }


def _set(layer: nnx.Module, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if not hasattr(layer, name):
            raise CutjaxError(
                f"edit sets {name!r}, which {type(layer).__name__} does not have; "
                f"{suggest(name, vars(layer))}"
            )
        if value is not getattr(layer, name):
            setattr(layer, name, value)
