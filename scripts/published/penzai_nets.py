"""Penzai's transformers, and its multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from .base import Apply, Built, halved, normal, published, tokens

PACKAGE = "penzai"


def build(
    model: Callable[[int], Any],
    call: Callable[[Any, Any], Any],
    *inputs: Any,
    **known: Any,
) -> Built:
    """A Penzai model: its parameters by name, bound again at every call."""

    def made(divisor: int) -> tuple[Apply, Any]:
        from penzai import pz

        whole = jax.eval_shape(lambda: model(divisor))
        unbound, parameters = pz.unbind_params(whole)
        labels = [p.label for p in parameters]
        shapes = {p.label: p.value for p in parameters}

        def apply(params: Any, *given: Any) -> Any:
            bound = pz.bind_variables(
                unbound,
                [pz.ParameterValue(label=n, value=params[n]) for n in labels],
            )
            return call(bound, *given)

        return apply, shapes

    return halved(made, inputs, **known)
