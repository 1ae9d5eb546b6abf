"""`cut`: a smaller NNX module of the same classes, proven against the function."""

from collections.abc import Mapping
from typing import Any

from cutjax._adapter import Edit, new_fields
from cutjax._agreement import Suspects, inputs_like, prove
from cutjax.dims import Keep
from cutjax.graph import Graph
from cutjax.nnx.layers import LAYERS
from cutjax.nnx.state import Call, named_modules, parts, split
from cutjax.shrink import cut_params, shrink

ROUTE = "cutjax.nnx"


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
    new = whole.merge(small)
    old_modules, modules = named_modules(model), named_modules(new)
    edit = dict(edit or {})
    for found in new_fields(old_modules, modules, LAYERS, edit, graph, keep):
        setattr(*found)
    want = shrink(split(model, call=call)[0], graph, keep)
    inputs = inputs_like(graph, inputs, ROUTE)
    suspects = Suspects(modules, LAYERS, ROUTE)
    prove(want, small, *split(new, call=call), inputs, suspects)
    return new
