"""The check that a smaller module computes what the smaller function computes."""

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cutjax.dims import Keep
from cutjax.errors import CutjaxError
from cutjax.graph import Graph
from cutjax.nnx.layers import LAYERS, entry
from cutjax.nnx.state import Call, named_modules, split
from cutjax.shrink import shrink

FAST = {"xla_backend_optimization_level": 0}
"""Each of the two programs runs once: compiling is what takes the time."""

REMEDY = """Tell what the class remembers:
    cutjax.nnx.cut(..., edit={{{name}: lambda old, new: {{"field": size}}}})
  or use the function, which needs no such help:
    cutjax.cut(*cutjax.nnx.split(model), graph, keep)"""


def prove(
    model: Any,
    new: Any,
    small: Any,
    graph: Graph,
    keep: Keep,
    inputs: tuple[Any, ...],
    call: Call | None,
) -> None:
    """Check the new module against the shrunk function.

    Args:
        model: the full module.
        new: the small one.
        small: the cut parameters.
        graph: the graph.
        keep: the keep.
        inputs: what to check with: arrays, shapes, or nothing.
        call: see `split`.

    Raises:
        CutjaxError: the new module fails, or answers something else.
    """
    inputs = tuple(_filled(inputs) if inputs else _like(graph))
    apply, _ = split(model, call=call)
    want = _run(shrink(apply, graph, keep), small, *inputs)
    new_apply, params = split(new, call=call)
    try:
        got = _run(new_apply, params, *inputs)
    except Exception as error:
        raise CutjaxError(_failure(new, error)) from error
    if not _equal(want, got, (params, inputs)):
        raise CutjaxError(_difference(new, want, got))


def _run(fn: Any, *args: Any) -> Any:
    return jax.jit(fn, compiler_options=FAST)(*args)


def _like(graph: Graph) -> Iterator[Any]:
    """Arrays of the traced shapes."""
    for text in graph.inputs:
        found = re.fullmatch(r"(\w+)\[([\d, ]*)\]", text)
        if found is None:
            raise CutjaxError(
                f"no random input can be made for {text}; pass those to check with: "
                "cutjax.nnx.cut(model, graph, keep, *inputs)"
            )
        shape = tuple(int(n) for n in found[2].split(",") if n)
        yield _random(jax.ShapeDtypeStruct(shape, jnp.dtype(found[1])))


def _filled(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs in which arrays stand for shapes."""
    return jax.tree.map(
        lambda x: _random(x) if isinstance(x, jax.ShapeDtypeStruct) else x, inputs
    )


def _random(like: Any) -> jax.Array:
    rng = np.random.default_rng(0)
    if jnp.issubdtype(like.dtype, jnp.inexact):
        return jnp.asarray(rng.normal(size=like.shape), like.dtype)
    return jnp.asarray(rng.integers(0, 2, like.shape), like.dtype)


def _equal(want: Any, got: Any, seen: Any) -> bool:
    """Equal up to the rounding of the coarsest type in use."""
    if jax.tree.structure(want) != jax.tree.structure(got):
        return False
    eps = max(
        (
            float(jnp.finfo(x.dtype).eps)
            for x in jax.tree.leaves((want, seen))
            if jnp.issubdtype(jnp.result_type(x), jnp.inexact)
        ),
        default=0.0,
    )
    return all(
        _close(np.asarray(a), np.asarray(b), eps**0.5)
        for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True)
    )


def _close(want: np.ndarray, got: np.ndarray, tolerance: float) -> bool:
    if want.shape != got.shape or want.dtype != got.dtype:
        return False
    if not jnp.issubdtype(want.dtype, jnp.inexact):
        return bool((want == got).all())
    want, got = want.astype(np.complex128), got.astype(np.complex128)
    size = np.abs(want[np.isfinite(want)]).max(initial=0.0)
    return np.allclose(want, got, rtol=0.0, atol=tolerance * size, equal_nan=True)


def _failure(new: Any, error: Exception) -> str:
    """Where in the module an error came from."""
    inner = _innermost(error)
    said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    where = f"in {inner} " if inner else ""
    names = _suspects(new)
    return (
        f"the cut module cannot run: {where}{said}\n  {_listed(names)}  "
        + REMEDY.format(name=_first(names, inner))
    )


def _difference(new: Any, want: Any, got: Any) -> str:
    shapes = [[tuple(x.shape) for x in jax.tree.leaves(t)] for t in (want, got)]
    said = "other values" if shapes[0] == shapes[1] else "shapes {1}, not {0}"
    names = _suspects(new)
    return (
        f"the cut module answers {said.format(*shapes)}: code within it depends on a "
        f"width in a way that its parameters do not show.\n  {_listed(names)}  "
        + REMEDY.format(name=_first(names, None))
    )


def _innermost(error: Exception) -> str | None:
    """The innermost module of the user's in the error's traceback: class and line."""
    found, step = None, error.__traceback__
    while step is not None:
        module = step.tb_frame.f_locals.get("self")
        if isinstance(module, nnx.Module) and entry(type(module), LAYERS) is None:
            code = step.tb_frame.f_code
            found = f"{type(module).__name__} ({code.co_filename}:{step.tb_lineno})"
        step = step.tb_next
    return found


def _suspects(new: Any) -> dict[str, str]:
    """Modules that no table knows and that remember numbers: path -> class, numbers."""
    out = {}
    for path, module in named_modules(new).items():
        numbers = {
            name: value
            for name, value in vars(module).items()
            if type(value) is int and not name.startswith("_") and value > 1
        }
        if numbers and entry(type(module), LAYERS) is None:
            said = ", ".join(f"{name}={value}" for name, value in numbers.items())
            out[path or "the module itself"] = f"{type(module).__name__}({said})"
    return out


def _listed(names: dict[str, str]) -> str:
    if not names:
        return ""
    some = [f"{name!r}: {said}" for name, said in list(names.items())[:4]]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"Modules that remember numbers: {'; '.join(some)}{more}.\n  "


def _first(names: dict[str, str], inner: str | None) -> str:
    said = inner or next(iter(names.values()), "MyModule")
    return re.split(r"[ (]", said)[0]
