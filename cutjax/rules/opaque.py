"""Operations that need an axis whole: FFTs, linear algebra, kernels, callbacks."""

from collections.abc import Callable

from cutjax.rules.base import rule, shape_of

CLOSED = {
    "pallas_call": "goes into a Pallas kernel",
    "ffi_call": "goes to a foreign function",
    "call_exported": "goes into an exported function",
    "pure_callback io_callback": "goes to a Python callback",
    "custom_partitioning": "goes into a function with its own partitioning",
    "linear_call": "goes into a `linear_call`",
    "custom_linear_solve linear_solve": "goes into a linear solve",
    "_dot_product_attention_fwd _dot_product_attention_bwd "
    "_dot_product_attention_fp8_fwd _dot_product_attention_fp8_bwd "
    "cudnn_fusion": "goes into a cuDNN kernel",
    "_scaled_matmul scaled_dot": "is multiplied in blocks with scales",
}
"""Primitives that are not looked into: all that goes in or comes out stays whole."""


def pinned(reason: str) -> Callable[..., list]:
    """The `infer` of a primitive all of whose arguments and results stay whole."""

    def infer(w, eqn, ins):
        for value in ins:
            for d in value.dims:
                w.solver.pin(d, reason)
        return [w.solver.news(shape_of(v), reason) for v in eqn.outvars]

    return infer


for _names, _reason in CLOSED.items():
    rule(_names)(pinned(_reason))


@rule("fft")
def _fft(w, eqn, ins):
    n = len(eqn.params["fft_lengths"])
    reason = "a Fourier transform runs along it"
    dims, sizes = ins[0].dims, shape_of(eqn.outvars[0])
    for d in dims[len(dims) - n :]:
        w.solver.pin(d, reason)
    return [(*dims[: len(dims) - n], *w.solver.news(sizes[len(dims) - n :], reason))]


def _matrices(rank: int):
    """Batch axes pass; the last `rank` axes of the first operand are of a matrix."""

    def infer(w, eqn, ins):
        reason = f"`{eqn.primitive}` needs whole matrices"
        batch = ins[0].dims[: len(ins[0].dims) - rank]
        for value in ins:
            w.solver.unify_all(value.dims[: len(batch)], batch)
            for d in value.dims[len(batch) :]:
                w.solver.pin(d, reason)
        inner = (shape_of(v)[len(batch) :] for v in eqn.outvars)
        return [(*batch, *w.solver.news(sizes, reason)) for sizes in inner]

    return infer


rule(
    "cholesky cholesky_update eig eigh geqp3 geqrf hessenberg householder_product lu "
    "ormqr qr schur svd symmetric_product triangular_solve tridiagonal"
)(_matrices(2))
rule("tridiagonal_solve lu_pivots_to_permutation")(_matrices(1))


@rule("debug_callback debug_print inspect_sharding check dce_sink")
def _watched(w, eqn, ins):
    """What only looks on sees the small arrays."""
    return []


@rule("create_token after_all platform_index axis_index")
def _scalar(w, eqn, ins):
    return [()] * len(eqn.outvars)
