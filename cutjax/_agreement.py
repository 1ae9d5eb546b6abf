"""The proof that a cut module answers what the smaller function answers.

What a module's own code remembers, or derives from a width, cannot be known otherwise.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

from cutjax._adapter import Modules, Table, entry
from cutjax._jit import jit
from cutjax.errors import CutjaxError
from cutjax.graph import Graph


class Suspects(NamedTuple):
    """What an error may have come from, and what to do about it.

    `modules` are the new ones by path, `table` those classes that are known, `route`
    the name of the adapter's module.
    """

    modules: Modules
    table: Table
    route: str

    def unknown(self, module: Any) -> bool:
        """Whether a module is of a class that the table does not know."""
        return entry(type(module), self.table) is None


def prove(
    want: Callable[..., Any],
    small: Any,
    got: Callable[..., Any],
    params: Any,
    inputs: tuple[Any, ...],
    suspects: Suspects,
) -> None:
    """Check that a new module answers what the smaller function answers.

    Args:
        want: the smaller function.
        small: its parameters.
        got: the new module as a function.
        params: its parameters.
        inputs: what to check with.
        suspects: the new modules.

    Raises:
        CutjaxError: the new module fails, or answers something else.
    """
    wanted = jit(want, quick=True)(small, *inputs)
    try:
        answered = jit(got, quick=True)(params, *inputs)
    except Exception as error:
        raise CutjaxError(_failure(suspects, error)) from error
    if not _equal(wanted, answered, _rounding(got, params, *inputs)):
        raise CutjaxError(_difference(suspects, wanted, answered))


def inputs_like(graph: Graph, inputs: tuple[Any, ...], route: str) -> tuple[Any, ...]:
    """Inputs to check with: arrays for shapes, random arrays for none.

    Args:
        graph: tells the traced shapes.
        inputs: arrays, shapes, or nothing.
        route: the name of the adapter's module, for the error.

    Returns:
        Arrays.

    Raises:
        CutjaxError: no array of such a type can be made up.
    """
    if inputs:
        return jax.tree.map(
            lambda x: _random(x) if isinstance(x, jax.ShapeDtypeStruct) else x, inputs
        )
    out = []
    for text in graph.inputs:
        found = re.fullmatch(r"(\w+)\[([\d, ]*)\]", text)
        if found is None:
            raise CutjaxError(
                f"no random input can be made for {text}; pass those to check with: "
                f"{route}.cut(model, graph, keep, *inputs)"
            )
        shape = tuple(int(n) for n in found[2].split(",") if n.strip())
        out.append(_random(jax.ShapeDtypeStruct(shape, jnp.dtype(found[1]))))
    return tuple(out)


def _random(like: Any) -> jax.Array:
    rng = np.random.default_rng(0)
    if jnp.issubdtype(like.dtype, jnp.inexact):
        return jnp.asarray(rng.normal(size=like.shape), like.dtype)
    return jnp.asarray(rng.integers(0, 2, like.shape), like.dtype)


def _rounding(fn: Any, *args: Any) -> float:
    """The square root of the coarsest rounding within a function."""

    def coarsest(jaxpr: Any) -> float:
        avals = [v.aval for eqn in jaxpr.eqns for v in eqn.outvars]
        dtypes = [getattr(aval, "dtype", None) for aval in avals]
        real = [d for d in dtypes if d is not None and jnp.issubdtype(d, jnp.inexact)]
        own = max((float(jnp.finfo(d).eps) for d in real), default=0.0)
        inner = [
            coarsest(getattr(sub, "jaxpr", sub))
            for eqn in jaxpr.eqns
            for sub in jaxprs_in_params(eqn.params)
        ]
        return max([own, *inner])

    return coarsest(jax.make_jaxpr(fn)(*args).jaxpr) ** 0.5


def _equal(want: Any, got: Any, tolerance: float) -> bool:
    if jax.tree.structure(want) != jax.tree.structure(got):
        return False
    pairs = zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True)
    return all(_close(a, b, tolerance) for a, b in pairs)


def _close(want: Any, got: Any, tolerance: float) -> bool:
    if want.shape != got.shape or want.dtype != got.dtype:
        return False
    if not jnp.issubdtype(want.dtype, jnp.inexact):
        return bool((want == got).all())
    want, got = (np.asarray(x).astype(np.complex128) for x in (want, got))
    size = np.abs(want[np.isfinite(want)]).max(initial=0.0)
    return np.allclose(want, got, rtol=0.0, atol=tolerance * size, equal_nan=True)


def _failure(suspects: Suspects, error: Exception) -> str:
    layer, own = _innermost(suspects, error)
    said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    where = " of ".join(x for x in (layer, own) if x)
    return f"the cut module cannot run: in {where or 'it'}: {said}" + _remedy(
        suspects, own
    )


def _difference(suspects: Suspects, want: Any, got: Any) -> str:
    shapes = [[tuple(x.shape) for x in jax.tree.leaves(t)] for t in (want, got)]
    said = "other values" if shapes[0] == shapes[1] else "shapes {1}, not {0}"
    return (
        f"the cut module answers {said.format(*shapes)}: code within it depends on a "
        "width in a way that its parameters do not show" + _remedy(suspects, None)
    )


def _innermost(suspects: Suspects, error: Exception) -> tuple[str | None, str | None]:
    """The innermost modules in a traceback: the library's if deeper, and the user's."""
    known = {type(m): suspects.unknown(m) for m in suspects.modules.values()}
    layer, own, step = None, None, error.__traceback__
    while step is not None:
        cls, code = type(step.tb_frame.f_locals.get("self")), step.tb_frame.f_code
        if known.get(cls) is False:
            layer = cls.__name__
        elif known.get(cls):
            layer, own = None, f"{cls.__name__} ({code.co_filename}:{step.tb_lineno})"
        step = step.tb_next
    return layer, own


def _remedy(suspects: Suspects, inner: str | None) -> str:
    """What to do; with the modules that no table knows and that remember numbers."""
    found = {}
    for path, module in suspects.modules.items():
        numbers = [
            f"{name}={value}"
            for name, value in vars(module).items()
            if type(value) is int and not name.startswith("_") and value > 1
        ]
        if numbers and suspects.unknown(module):
            said = f"{type(module).__name__}({', '.join(numbers)})"
            found.setdefault(said, path or "the model itself")
    some = "; ".join(f"{said} at {path}" for said, path in list(found.items())[:4])
    name = re.split(r"[ (]", inner or next(iter(found), "MyModule"))[0]
    return (
        (f"\n  modules that remember numbers: {some}" if some else "")
        + "\n  tell what a class of yours remembers: "
        + f'{suspects.route}.cut(..., edit={{{name}: lambda old, new: {{"field": 1}}}})'
        + "\n  or keep these widths whole: "
        + f'{suspects.route}.trace(..., pin="...")'
        + "\n  or use the function, which needs no such help: "
        + f"cutjax.cut(*{suspects.route}.split(model), graph, keep)"
    )
