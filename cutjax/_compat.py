"""Every difference between JAX versions, and every private import of JAX."""

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.extend.core.primitives as primitives
import jax.numpy as jnp
import jaxlib
from jax._src import source_info_util as _source
from jax._src.core import trace_state_clean as trace_state_clean
from jax.extend.core import Literal as Literal

# Primitives without a public name, by the module that holds them.
_HOMES = {
    "ad_util": "zeros_like",
    "callback": "pure_callback io_callback",
    "checkify": "check",
    "core": "pvary reduced_vary_cast ref empty_ref free_ref freeze accum_grad_in_ref",
    "cudnn.fused_attention_stablehlo": "_dot_product_attention_fwd "
    "_dot_product_attention_bwd _dot_product_attention_fp8_fwd "
    "_dot_product_attention_fp8_bwd",
    "cudnn.fusion": "cudnn_fusion",
    "cudnn.scaled_matmul_stablehlo": "_scaled_matmul",
    "custom_batching": "custom_vmap",
    "custom_derivatives": "linear_call remat_opt unreachable",
    "custom_partitioning": "custom_partitioning",
    "debugging": "debug_callback debug_print inspect_sharding",
    "export._export": "call_exported",
    "export.shape_poly": "shape_assertion dim_as_value dimension_size",
    "ffi": "ffi_call",
    "hijax": "call_hi_primitive",
    "lax.control_flow": "platform_index",
    "lax.lax": "composite to_edtype from_edtype ragged_dot_general empty tie",
    "lax.linalg": "cholesky_update ormqr lu_pivots_to_permutation geqrf geqp3 "
    "symmetric_product",
    "lax.parallel": "all_gather_invariant all_gather_reduced reduce_scatter pbroadcast "
    "psum_invariant unreduced_psum unreduced_reduce_scatter preduced psend precv "
    "vary_unreduced_cast",
    "lax.scaled_dot": "scaled_dot",
    "pallas.pallas_call": "pallas_call",
    "pjit": "reshard layout_constraint",
    "random": "random_clone",
    "random.philox2x32": "philox2x32",
    "random.philox4x32": "philox4x32",
    "random.threefry4x32": "threefry4x32",
    "shard_map": "shard_map",
    "state.discharge": "run_state",
    "state.primitives": "addupdate get swap",
    "xla_metadata": "xla_metadata_call xla_metadata_value",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def primitive(name: str) -> Any:
    """The primitive called `name`, wherever JAX keeps it; None where it has none."""
    found = getattr(primitives, f"{name}_p", None) or getattr(
        jax.lax, f"{name}_p", None
    )
    if found is not None or name not in _HOME_OF:
        return found
    try:
        home = importlib.import_module(f"jax._src.{_HOME_OF[name]}")
    except ImportError:
        return None
    return getattr(home, f"{name}_p", None)


def _key_primitives() -> tuple[Any, Any]:
    # Their home moved between versions; a traced call shows them wherever they live.
    raw = jax.ShapeDtypeStruct((2,), jnp.uint32)
    both = jax.make_jaxpr(lambda k: jax.random.key_data(jax.random.wrap_key_data(k)))
    wrap, unwrap = (e.primitive for e in both(raw).eqns)
    return wrap, unwrap


random_wrap_p, random_unwrap_p = _key_primitives()


def open_jaxpr(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A closed or open jaxpr as (open jaxpr, values of its constants).

    Until 0.10 a closed jaxpr wraps an open one; from 0.11 they are one class.
    """
    consts = getattr(jaxpr, "consts", None) or ()
    return getattr(jaxpr, "jaxpr", jaxpr), consts


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """How many leading inputs of a `scan` are constants, and how many are carried.

    From 0.12 the numbers are the lengths of the parts of `ft_in`.
    """
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(tuple(consts)), len(tuple(carry))


# Frames of these are how a model is built, not where its author wrote it.
_HERE = os.path.dirname(__file__) + os.sep
_MODELS = os.path.join(_HERE, "models", "")
_SITE = f"site-packages{os.sep}"
_FRAMEWORKS = tuple(
    f"{_SITE}{name}{os.sep}" for name in ("flax", "haiku", "equinox", "optax")
)


def user_line(source_info: Any) -> str | None:
    """The user's line, `file.py:12 (function)`, behind an equation, or None."""
    frames = list(_source.user_frames(source_info.traceback))
    own = [f for f in frames if _is_own(f.file_name)]
    for frame in own or frames:
        place = _shortened(frame.file_name)
        return f"{place}:{frame.start_line} ({frame.function_name})"
    return None


def _is_own(file: str) -> bool:
    if file.startswith(_HERE):
        return file.startswith(_MODELS)
    return not any(name in file for name in _FRAMEWORKS)


def _shortened(file: str) -> str:
    """A path as seen from the working directory, or from where packages lie."""
    if f"{os.sep}ipykernel_" in file:
        return "notebook cell"
    if file.startswith(_HERE):
        return os.path.join("cutjax", file.removeprefix(_HERE))
    here = os.getcwd() + os.sep
    return (
        file.removeprefix(here) if file.startswith(here) else file.rpartition(_SITE)[2]
    )


@contextmanager
def scope_of(eqn: Any) -> Iterator[None]:
    """A context that keeps an equation's named scope, source line and settings."""
    info = eqn.source_info
    stack = _source.current_name_stack() + info.name_stack
    with _source.user_context(info.traceback, name_stack=stack), eqn.ctx.manager:
        yield


def transposed(source_info: Any) -> bool:
    """Whether an equation was made by transposing another: it pulls cotangents back."""
    return any(scope.name == "transpose" for scope in source_info.name_stack.stack)


def bind(eqn: Any, args: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    """Evaluate one equation on values, with other parameters."""
    out = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(params))
    return list(out) if eqn.primitive.multiple_results else [out]


def varying_like(value: Any, other: Any) -> Any:
    """A constant that varies over the mesh axes of a `shard_map` as `other` does."""
    axes = tuple(jax.typeof(other).manual_axis_type.varying)
    return jax.lax.pcast(value, axes, to="varying") if axes else value


SELDOM: dict[str, Any] = {}
"""Options for XLA on CPU to compile sooner what runs tens of times, no slower code."""

if jaxlib.__version__.startswith("0.10."):  # 0.12 no longer knows it
    SELDOM["xla_cpu_use_fusion_emitters"] = False

QUICK = {**SELDOM, "xla_backend_optimization_level": 0}
"""Options for XLA on CPU to compile fast what runs once."""
