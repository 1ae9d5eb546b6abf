"""Every primitive of JAX has a rule, or stands on the list of gaps with a reason."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.extend.core.primitives as public
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas
from jax.extend.core import Primitive
from laws.tools import random_keep

import cutjax as cj
from cutjax.rules import RULES
from cutjax.rules.gaps import GAPS

PUBLIC = {
    name: value for name, value in vars(public).items() if isinstance(value, Primitive)
}


def missing(rules: Any, gaps: Any) -> list[str]:
    return [name for name, p in PUBLIC.items() if p not in rules and p not in gaps]


def test_every_public_primitive_has_a_rule_or_a_reason() -> None:
    assert len(PUBLIC) > 100, "where did the primitives go?"
    assert not missing(RULES, GAPS)


def test_saboteur_a_lost_rule_is_missed() -> None:
    less = {p: rule for p, rule in RULES.items() if p is not jax.lax.sort_p}
    assert missing(less, GAPS) == ["sort_p"]


def test_the_gaps_are_few_and_have_no_rule() -> None:
    public_gaps = [name for name, p in PUBLIC.items() if p in GAPS]
    assert len(public_gaps) <= 6, public_gaps
    assert not GAPS.keys() & RULES.keys()


def check(apply: Any, shapes: dict[str, tuple[int, ...]], x: Any) -> dict[str, int]:
    """The cut function equals the masked one; returns the sizes of the free groups."""
    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.normal(size=shape), "float32")
        for name, shape in shapes.items()
    }
    graph = cj.trace(apply, params, x)
    keep = random_keep(graph, 1, exact=False)
    assert keep or not graph.free, "nothing was cut"
    small_apply, small = cj.cut(apply, params, graph, keep)
    got = jax.jit(small_apply)(small, x)
    want = apply(cj.mask(params, graph, keep), x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    return {group.name: group.size for group in graph.free}


X = jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)), "float32")
MLP = {"a": (4, 8), "b": (8, 2)}
DEEP = {"z": (4, 5), "a": (5, 8), "b": (8, 2)}

MIDDLE = {
    "fft": lambda h: jnp.fft.fft(h).real,
    "fft_of_rows": lambda h: jnp.fft.fft(h, axis=0).real,
    "cumsum": lambda h: jnp.cumsum(h, -1),
    "cumsum_of_rows": lambda h: jnp.cumsum(h, 0),
    "sort": lambda h: jnp.sort(h, -1),
    "sort_rows": lambda h: jnp.sort(h, 0),
    "top_k": lambda h: jnp.pad(jax.lax.top_k(h, 3)[0], ((0, 0), (0, 5))),
    "associative_scan": lambda h: jax.lax.associative_scan(jnp.add, h),
    "reversed": lambda h: h[:, ::-1],
    "reversed_rows": lambda h: h[::-1],
    "every_other": lambda h: jnp.repeat(h[:, ::2] * h[:, 1::2], 2, axis=1),
    "qr": lambda h: h @ jnp.linalg.qr(h.T @ h + jnp.eye(8))[0],
    "solve": lambda h: jnp.linalg.solve(jnp.eye(8) * 3 + h.T @ h, h.T).T,
    "cholesky_of_each": lambda h: (
        h
        * jnp.linalg.cholesky(jnp.ones((8, 1, 1)) + (h**2).sum(0)[:, None, None])[
            :, 0, 0
        ]
    ),
    "callback": lambda h: jax.pure_callback(lambda v: np.asarray(v) * 2, h, h),
    "debug": lambda h: (jax.debug.callback(lambda v: None, h), h)[1],
    "platform": lambda h: jax.lax.platform_dependent(h, cpu=jnp.tanh, default=jnp.cos),
    "complex": lambda h: jnp.abs(jax.lax.complex(h, h * 2)),
    "custom_vmap": lambda h: doubled(h),
    "composite": lambda h: jax.lax.composite(jnp.sin, name="my.sin")(h),
    "reduce_precision": lambda h: jax.lax.reduce_precision(h, 8, 7),
    "reshape_in_order": lambda h: jax.lax.reshape(h, (8, 6), dimensions=(1, 0)).T,
    "roll": lambda h: jnp.roll(h, 3, axis=-1),
    "random_bits": lambda h: h * jax.random.normal(jax.random.key(0), (6, 1)),
    "pallas": lambda h: pallas.pallas_call(doubling, out_shape=h, interpret=True)(h),
    "bfloat16": lambda h: h.astype(jnp.bfloat16).astype(jnp.float32),
    "windows": lambda h: jax.lax.reduce_window(
        h, 0.0, jax.lax.add, (2, 1), (1, 1), "SAME"
    ),
    "scatter_rows": lambda h: jnp.zeros_like(h).at[jnp.array([3, 0, 1])].add(h[:3]),
    "segment_sum": lambda h: jax.ops.segment_sum(h, jnp.arange(6) % 2, 6),
    "pmean": lambda h: jax.vmap(
        lambda row: row - jax.lax.pmean(row, "batch") + jax.lax.pmax(row, "batch"),
        axis_name="batch",
    )(h),
    "switch": lambda h: jax.lax.switch(1, [jnp.sin, jnp.cos, jnp.tanh], h),
}
"""What stands between two layers; of a middle that needs all 8 channels, see WHOLE."""

WHOLE = {
    *("fft", "cumsum", "sort", "top_k", "reversed", "qr", "solve", "callback"),
    "pallas",
}
SPLIT = {"every_other": [2, 4, 5], "roll": [3, 5, 5]}
"""`b` reads two copies of each of 4 channels: a copy may go, as a channel may."""


@jax.custom_batching.custom_vmap
def doubled(h: jax.Array) -> jax.Array:
    return h * 2


@doubled.def_vmap
def _doubled_batch(size: int, batched: Any, h: jax.Array) -> Any:
    return h * 2, True


def doubling(source: Any, target: Any) -> None:
    target[...] = source[...] * 2


@pytest.mark.parametrize("name", MIDDLE)
def test_a_primitive_between_two_layers(name: str) -> None:
    def apply(p: Any, x: jax.Array) -> jax.Array:
        return MIDDLE[name](jnp.tanh(x @ p["z"]) @ p["a"]) @ p["b"]

    found = check(apply, DEEP, X)
    whole = {"z:1": 5} if name in WHOLE else {"z:1": 5, "a:1": 8}
    if name in SPLIT:
        assert sorted(found.values()) == SPLIT[name]
    else:
        assert found == whole


def test_a_ragged_product_keeps_its_groups_and_frees_its_widths() -> None:
    sizes = jnp.array([1, 2, 3])

    def apply(p: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(jax.lax.ragged_dot(x @ p["a"], p["up"], sizes))
        return jax.lax.ragged_dot(h, p["down"], sizes) @ p["out"]

    shapes = {"a": (4, 5), "up": (3, 5, 7), "down": (3, 7, 6), "out": (6, 2)}
    assert check(apply, shapes, X) == {"a:1": 5, "up:2": 7, "down:2": 6}


def test_structure_is_kept() -> None:
    """Loops stay loops, remat stays remat, rules stay rules, names stay names."""

    def apply(p: Any, x: jax.Array) -> jax.Array:
        with jax.named_scope("encoder"):
            h = jax.checkpoint(lambda h: jnp.tanh(h @ p["a"]), prevent_cse=False)(x)
        h = jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), h, p["layers"])[0]
        return h @ p["b"]

    shapes = {"a": (4, 8), "layers": (7, 8, 8), "b": (8, 2)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    graph = cj.trace(apply, params, X)
    assert [group.size for group in graph.free] == [8], "alike across the stack"
    keep = {graph.free[0].name: np.arange(8) < 5}
    small = cj.cut_params(params, graph, keep)
    program = jax.make_jaxpr(cj.shrink(apply, graph, keep))(small, X)
    text = str(program)
    for kept in ("scan[", "length=7", "remat", "custom_jvp_call[", "f32[7,5,5]"):
        assert kept in text, kept
    scopes = {str(eqn.source_info.name_stack) for eqn in program.eqns}
    assert any("encoder" in scope for scope in scopes)


def test_a_gap_says_why() -> None:
    def apply(p: Any, x: jax.Array) -> jax.Array:
        ref = jax.new_ref(x @ p["a"])
        ref[...] = ref[...] * 2
        return ref[...] @ p["b"]

    params = jax.tree.map(jnp.ones, MLP, is_leaf=lambda s: isinstance(s, tuple))
    with pytest.raises(cj.CutjaxError, match=r"(?s)mutable reference.*test_primitives"):
        cj.trace(apply, params, X)


# A primitive of one's own. ----------------------------------------------------------

widen = Primitive("widen")
widen.def_impl(lambda x, *, times: jnp.tile(x, times))
widen.def_abstract_eval(
    lambda x, *, times: x.update(shape=(*x.shape[:-1], x.shape[-1] * times))
)
jax.interpreters.mlir.register_lowering(
    widen,
    jax.interpreters.mlir.lower_fun(
        lambda x, *, times: jnp.tile(x, times), multiple_results=False
    ),
)


def infer_widen(w: Any, eqn: Any, ins: Any) -> list[Any]:
    times = w.solver.new(eqn.params["times"], "copies")
    return [(*ins[0].dims[:-1], w.solver.product([times, ins[0].dims[-1]]))]


def widened(p: Any, x: jax.Array) -> jax.Array:
    return widen.bind(x @ p["a"], times=3) @ p["b"]


def test_a_rule_of_ones_own() -> None:
    shapes = {"a": (4, 5), "b": (15, 2)}
    with pytest.raises(cj.CutjaxError, match="register_rule"):
        check(widened, shapes, X)
    cj.register_rule(widen, infer=infer_widen)
    assert check(widened, shapes, X) == {"a:1": 5}


sized = Primitive("sized")
sized.def_impl(lambda x, *, width: x[..., :width])
sized.def_abstract_eval(lambda x, *, width: x.update(shape=(*x.shape[:-1], width)))
jax.interpreters.mlir.register_lowering(
    sized,
    jax.interpreters.mlir.lower_fun(
        lambda x, *, width: x[..., :width], multiple_results=False
    ),
)


def resize_sized(k: Any, eqn: Any, ins: Any, outs: Any) -> dict[str, int]:
    return {"width": k.count(outs[0].dims[-1])}


def test_a_rule_that_changes_parameters() -> None:
    def apply(p: Any, x: jax.Array) -> jax.Array:
        return sized.bind(x @ p["a"], width=8) @ p["b"]

    cj.register_rule(sized, infer=cj.rules.same_axes, resize=resize_sized)
    assert check(apply, MLP, X) == {"a:1": 8}
    # Saboteur: without its resize the primitive is bound with the full width.
    cj.register_rule(sized, infer=cj.rules.same_axes)
    with pytest.raises(Exception, match=r"8|shape"):
        check(apply, MLP, X)


def test_a_rule_for_no_primitive() -> None:
    # While tests run, the annotation is checked before the function is entered.
    with pytest.raises((cj.CutjaxError, TypeError), match="rimitive"):
        cj.register_rule(jnp.tanh, infer=cj.rules.same_axes)  # pyright: ignore


# Several devices. -------------------------------------------------------------------

SHARDED = """
import jax, jax.numpy as jnp, numpy as np, cutjax as cj
from jax.sharding import AxisType, PartitionSpec as P

mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
rng = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(rng.normal(size=shape), "float32")

def block(a, b, x):
    h = jnp.tanh(x @ a)
    mean = jax.lax.psum((h**2).sum(-1, keepdims=True), "model") / 16
    y = jax.lax.psum(h * jax.lax.rsqrt(mean + 1e-6) @ b, "model")
    y = jax.lax.all_gather(y, "data", tiled=True)
    y = jax.lax.psum_scatter(y, "data", tiled=True)
    return y + jax.lax.axis_index("data")

specs = dict(in_specs=(P(None, "model"), P("model"), P("data")), out_specs=P("data"))

def apply(p, x):
    y = jax.shard_map(block, mesh=mesh, **specs)(p["a"], p["b"], x @ p["z"])
    y = jax.lax.with_sharding_constraint(y, jax.NamedSharding(mesh, P("data")))
    last = lambda y: y @ p["c"]
    return jax.jit(last, in_shardings=jax.NamedSharding(mesh, P("data")))(y)

def narrower(p, x):
    h = jnp.tanh(x @ p["z"] @ p["a"])
    h = h * jax.lax.rsqrt((h**2).mean(-1, keepdims=True) + 1e-6)
    return (h @ p["b"] * 2 + jnp.array([0, 0, 1, 1.0])[:, None]) @ p["c"]

p = dict(z=normal(3, 6), a=normal(6, 16), b=normal(16, 10), c=normal(10, 2))
x = normal(4, 3)
graph = cj.trace(apply, p, x)
assert sorted(g.size for g in graph.free) == [6, 8, 10], graph
keep = {g.name: np.arange(g.size) % 3 != 1 for g in graph.free}
small_apply, small = cj.cut(apply, p, graph, keep)
assert small["a"].shape == (4, 10), small["a"].shape
want = narrower(small, x)
np.testing.assert_allclose(jax.jit(small_apply)(small, x), want, rtol=1e-4, atol=1e-4)
text = str(jax.make_jaxpr(small_apply)(small, x))
assert "shard_map" in text and "sharding_constraint" in text and "in_shardings" in text
"""


def test_shards_of_a_mesh(tmp_path: Path) -> None:
    program = tmp_path / "sharded.py"
    program.write_text(textwrap.dedent(SHARDED))
    flags = "--xla_force_host_platform_device_count=4"
    flags += " --xla_cpu_experimental_ynn_fusion_type="
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr[-2000:]
