"""How a Flax model of transformers is built; what it needs to run on today's JAX."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from .base import Apply, Built, Kept, halved

PACKAGE = "transformers"


def build(
    kind: str,
    config: Callable[[int], Any],
    inputs: dict[str, Any],
    outputs: tuple[str, ...] = ("logits",),
    **known: Any,
) -> Built:
    """A Flax class of transformers and the same one configured narrower.

    Args:
        kind: name of the class.
        config: from a divisor (1 full, 2 narrow) to the configuration.
        inputs: keyword arguments of the call.
        outputs: those to answer.
        **known: fields of `Narrow`.
    """
    names = tuple(inputs)

    def made(divisor: int) -> tuple[Apply, Any]:
        model, shapes = abstract(module(kind), config(divisor))

        def apply(params: Any, *given: Any) -> dict[str, Any]:
            out = model(**dict(zip(names, given, strict=True)), params=params)
            return {name: out[name] for name in outputs}

        return apply, dict(shapes)

    return halved(made, tuple(inputs.values()), **known)


def abstract(kind: Any, config: Any) -> tuple[Any, Any]:
    """A model without parameters, and their shapes."""
    if "_do_init` must be" not in inspect.getsource(kind.__init__):
        model = kind(config, _do_init=False)
        return model, model.params_shape_tree
    # Models that join two others insist on making their parameters.
    made = []

    def parameters() -> Any:
        made.append(kind(config))
        return made[0].params

    shapes = jax.eval_shape(parameters)
    return made[0], shapes


def module(name: str) -> Any:
    """A class of transformers by name."""
    import transformers

    transformers.logging.set_verbosity_error()
    found = getattr(transformers, name)
    for base in found.__mro__:
        home = sys.modules[base.__module__]
        if "modeling_flax" in home.__name__ and "t5" in home.__name__:
            home.jnp = OlderNumpy()
    return found


class OlderNumpy:
    """`jax.numpy` with the names of `clip`'s arguments that JAX 0.10 dropped (T5)."""

    def __getattr__(self, name: str) -> Any:
        return getattr(jnp, name)

    def clip(self, x: Any, *, a_min: Any = None, a_max: Any = None) -> Any:
        return jnp.clip(x, a_min, a_max)


def config(name: str, **fields: Any) -> Callable[[int], Any]:
    """A configuration from fields; tuples are (full, narrow)."""

    def make(divisor: int) -> Any:
        at = divisor - 1
        chosen = {k: v[at] if isinstance(v, tuple) else v for k, v in fields.items()}
        return module(name)(**chosen)

    return make


def sines(kind: str, name: str, path: str, axis: int) -> Callable[[Kept], Any]:
    """`Narrow.constants` of a class that adds a table of sines to its embeddings.

    Args:
        kind: name of the class.
        name: the function in its module that makes the table of a given width.
        path: a parameter with the width of the table...
        axis: ...along this axis.
    """

    def constants(kept: Kept) -> Any:
        home = sys.modules[module(kind).__module__]
        make, where = getattr(home, name), kept(path, axis)

        def narrow(positions: int, width: int) -> Any:
            return make(positions, 2 * width)[..., where]

        return mock.patch.object(home, name, narrow)

    return constants
