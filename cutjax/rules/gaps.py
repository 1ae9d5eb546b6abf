"""Primitives that have no rule on purpose, and why: the error says so."""

from collections.abc import Mapping

from cutjax._compat import primitive

_GAPS = {
    "a mutable reference (`jax.new_ref`) is read and written in place; pass values": (
        "ref empty_ref free_ref freeze get swap addupdate accum_grad_in_ref run_state"
    ),
    "a size that is known only later (shape polymorphism); trace with numbers": (
        "dim_as_value dimension_size shape_assertion"
    ),
    "arrays of an extended type; take them apart outside": (
        "to_edtype from_edtype call_hi_primitive"
    ),
    "shards of different sizes are exchanged": "ragged_all_to_all psend precv",
    "it exists only while JAX differentiates; trace the function, not its "
    "linearisation": "custom_lin stage unreachable tie",
}

GAPS: Mapping[object, str] = {
    found: reason
    for reason, names in _GAPS.items()
    for found in map(primitive, names.split())
    if found is not None
}
"""Primitive -> why it has no rule."""
