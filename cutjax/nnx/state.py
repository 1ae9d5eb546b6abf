"""An NNX module as `apply(params, *inputs)` over a plain pytree."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from cutjax.errors import CutjaxError
from cutjax.graph import Graph
from cutjax.trace import trace as infer

Call = Callable[..., Any]
"""`call(module, *inputs)`: what is asked of a module, `module(*inputs)` by default."""

STATE = (nnx.RngState, nnx.Cache, nnx.Intermediate)
"""Variables that are no parameters: random streams, caches, what was sown."""


class Parts(NamedTuple):
    """A module taken apart: its structure, its parameters, and the rest of its state.

    `places` gives for each parameter its path in the module and its keys in the pytree.
    """

    graphdef: Any
    variables: dict[tuple[Any, ...], Any]
    rest: Any
    places: dict[tuple[Any, ...], tuple[str, ...]]

    @property
    def params(self) -> dict[str, Any]:
        """The parameters as nested dicts: `layers/0/linear/kernel`."""
        out: dict[str, Any] = {}
        for path, leaf in self.variables.items():
            *outer, last = self.places[path]
            node = out
            for key in outer:
                node = node.setdefault(key, {})
            node[last] = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
        return out

    def merge(self, params: Any) -> Any:
        """A new module of this structure with these parameters."""
        flat = []
        for path, leaf in self.variables.items():
            value = params
            for key in self.places[path]:
                value = value[key]
            kept = isinstance(leaf, nnx.Variable)
            flat.append((path, leaf.replace(value) if kept else value))
        # Copies: a random stream that draws in one module must not move in another.
        return nnx.merge(self.graphdef, nnx.from_flat_state(flat), self.rest, copy=True)


def parts(model: Any) -> Parts:
    """Take a module apart; it stays as it is.

    Args:
        model: an NNX module, of arrays or of shapes only.

    Returns:
        Its parts; arrays are shared, never copied or changed.

    Raises:
        CutjaxError: not an NNX module.
    """
    if not isinstance(model, nnx.Module):
        raise CutjaxError(
            f"a {type(model).__name__} is not an NNX module; for Linen see "
            "cutjax.linen, for any function cutjax.trace(apply, params, *inputs)"
        )
    graphdef, params, rest = nnx.split(model, _is_parameter, ..., graph=True)
    variables = dict(nnx.to_flat_state(params))
    places = {path: tuple(_keys(path)) for path in variables}
    return Parts(graphdef, variables, rest, places)


def split(
    model: Any, *, call: Call | None = None
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A module as a pure function in evaluation mode, and its parameters.

    Args:
        model: an NNX module; it is not changed, its mode neither.
        call: what to ask of it, as `lambda module, x: module.encode(x, decode=False)`;
            `module(*inputs)`, if not given.

    Returns:
        `(apply, params)`: all state that a cut may narrow as nested dicts by path
        (Param, BatchStat, arrays of real numbers); random streams, caches and integer
        tables stay inside of `apply`.

    Raises:
        CutjaxError: not an NNX module.

    Example:
        >>> from flax import nnx
        >>> import jax.numpy as jnp, cutjax.nnx
        >>> apply, params = cutjax.nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        >>> sorted(params), apply(params, jnp.ones((1, 3))).shape
        (['bias', 'kernel'], (1, 2))
    """
    whole = parts(model)
    view = whole.merge(whole.params)
    view.eval()
    taken = parts(view)
    asked = call or _plain_call

    def apply(params: Any, *inputs: Any) -> Any:
        module = taken.merge(params)
        return asked(module, *inputs)

    return apply, taken.params


def trace(
    model: Any,
    *inputs: Any,
    call: Call | None = None,
    pin: Iterable[str] = (),
    on_unknown: str = "raise",
) -> Graph:
    """The channel groups of an NNX module, in evaluation mode.

    Args:
        model: the module, of arrays or (`nnx.eval_shape`) of shapes only.
        *inputs: arrays or shapes of one batch.
        call: see `split`.
        pin: see `cutjax.trace`.
        on_unknown: see `cutjax.trace`.

    Returns:
        The graph; its groups are named by path, as `layers/0/linear/kernel:1`.

    Raises:
        CutjaxError: not an NNX module, or whatever `cutjax.trace` raises.

    Example:
        >>> from flax import nnx
        >>> import jax, jax.numpy as jnp, cutjax.nnx
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(
        ...     nnx.Linear(3, 8, rngs=rngs), jax.nn.relu, nnx.Linear(8, 2, rngs=rngs)
        ... )
        >>> [g.name for g in cutjax.nnx.trace(model, jnp.ones((1, 3))).free]
        ['layers/0/kernel:1']
    """
    apply, params = split(model, call=call)
    return infer(apply, params, *inputs, pin=pin, on_unknown=on_unknown)


def _plain_call(module: Any, *inputs: Any) -> Any:
    return module(*inputs)


def _is_parameter(path: tuple[Any, ...], leaf: Any) -> bool:
    """Whether a leaf of a module's state may be narrowed.

    Arrays held without a Variable count: WeightNorm keeps its scales so. Integers do
    not: they index, and an index is no channel.
    """
    if isinstance(leaf, STATE):
        return False
    value = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
    dtype = getattr(value, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _keys(path: tuple[Any, ...]) -> Iterable[str]:
    """Keys of nested dicts; a path used as a key (WeightNorm's scales) is opened."""
    for part in path:
        yield from _keys(part) if isinstance(part, tuple) else (str(part),)


def named_modules(model: Any) -> dict[str, Any]:
    """Every module within one, by path, children before parents."""
    found = nnx.iter_modules(model, graph=True)
    return {"/".join(_keys(path)): module for path, module in found}
