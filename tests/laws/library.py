"""The library under test, as the namespace of functions that the laws judge."""

from types import SimpleNamespace

import jax

import cutjax
from cutjax.bench.flops import count_flops

CJ = SimpleNamespace(
    trace=cutjax.trace,
    mask=cutjax.mask,
    cut_params=cutjax.cut_params,
    shrink=cutjax.shrink,
    cut=cutjax.cut,
    gate=getattr(cutjax, "gate", None),
    count_flops=count_flops,
    jit=jax.jit,
)
