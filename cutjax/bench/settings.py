"""The compiler settings at which a model is measured, as data.

XLA's CPU backend hands parts of a program to YNNPACK, and which parts is the one option
that moved any of our nets by more than noise. None of the values wins everywhere (ms,
one thread of two Zen 4 cores, jax 0.10.2, batch 1, 32x32 images):

| net | default | tuned | convolutions |
|---|---|---|---|
| ResNet-18 | 30.3 | **14.0** | 15.1 |
| ResNet-18, half width | 5.4 | **3.9** | 4.1 |
| four depthwise-separable blocks of 64 | 7.6 | 13.8 | **7.5** |

so a candidate is compared at its own best. Tried on ResNet-18 as well and without
effect: vector width, fast math, oneDNN, XNNPACK, fusion emitters, tiling propagation,
the concurrency-optimised scheduler.
"""

from collections.abc import Mapping
from types import MappingProxyType

Options = Mapping[str, str | bool | int]
"""XLA compiler options, as `compile(compiler_options=...)` takes them."""

_YNN = "xla_cpu_experimental_ynn_fusion_type"

SETTINGS: Mapping[str, Options] = MappingProxyType(
    {
        "default": {},
        "tuned": {_YNN: ""},  # no YNNPACK fusions: one pool no longer eats a whole net
        "convolutions": {_YNN: "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"},
    }
)
"""Setting -> compiler options; pass your own mapping to `measure` for others."""
