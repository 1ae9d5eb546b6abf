"""Equations that hold jaxprs: calls, custom derivatives, remat, scan, while, cond."""

from typing import Any

import jax

from cutjax._compat import scan_counts
from cutjax.rules.base import Value, rule
from cutjax.rules.counts import joint

BODIES = ("jaxpr", "call_jaxpr", "call")


def _inline(ev, eqn, sub, ins, outs, args):
    return ev.run(sub[0], args)


@rule("closed_call call composite custom_vmap xla_metadata_call", evaluate=_inline)
def _call(w, eqn, ins):
    """Whatever is called once says of its axes what its body says."""
    name = next(name for name in BODIES if name in eqn.params)
    return w.enter(eqn.params[name], ins).outs


def _jit(ev, eqn, sub, ins, outs, args):
    """A nested jit stays one where it says on which devices its arrays lie."""
    placed = [
        [s if isinstance(s, jax.sharding.Sharding) else None for s in eqn.params[side]]
        for side in ("in_shardings", "out_shardings")
    ]
    if ev.flat or ev.hook or not any(map(any, placed)):
        return ev.run(sub[0], args)
    small = jax.jit(
        lambda *a: tuple(ev.run(sub[0], a)),
        in_shardings=tuple(placed[0]),
        out_shardings=tuple(placed[1]),
    )
    return list(small(*args))


rule("jit", evaluate=_jit)(_call)


def _remat(ev, eqn, sub, ins, outs, args):
    if ev.flat:
        return ev.run(sub[0], args)
    options = {key: eqn.params[key] for key in ("prevent_cse", "policy")}
    return jax.checkpoint(lambda *a: ev.run(sub[0], a), **options)(*args)


rule("remat", evaluate=_remat)(_call)


def _custom_jvp(ev, eqn, sub, ins, outs, args):
    """The user's derivative rule, traced at full size and resized like the function."""
    if ev.flat or ev.hook:
        return ev.run(sub[0], args)
    small = jax.custom_jvp(lambda *a: tuple(ev.run(sub[0], a)))
    active = [
        i
        for i, a in enumerate(args)
        if jax.numpy.issubdtype(a.dtype, jax.numpy.inexact)
    ]
    n = len(args)

    def full(*flat):
        primals, tangents = flat[:n], flat[n:]

        def of_active(*some):
            inner = list(primals)
            for i, value in zip(active, some, strict=True):
                inner[i] = value
            return tuple(ev.bind(eqn, inner))

        out, tangent = jax.jvp(of_active, tuple(primals[i] for i in active), tangents)
        return [*out, *tangent]

    @small.defjvp
    def _rule(primals, tangents):
        wanted = [tangents[i] for i in active]
        axes = ev.axes([*ins, *(ins[i] for i in active)])
        both = ev.again(full, axes, [*primals, *wanted])[0]
        half = len(both) // 2
        return tuple(both[:half]), tuple(both[half:])

    return list(small(*args))


rule("custom_jvp_call", evaluate=_custom_jvp)(_call)


def _custom_vjp(ev, eqn, sub, ins, outs, args):
    """Both halves of the user's rule are traced at full size and resized."""
    if ev.flat or ev.hook:
        return ev.run(sub[0], args)
    small = jax.custom_vjp(lambda *a: tuple(ev.run(sub[0], a)))
    n = len(outs)

    def forward(*primals):
        trees = []

        def full(*a):
            out, back = jax.vjp(lambda *b: tuple(ev.bind(eqn, b)), *a)
            leaves, tree = jax.tree.flatten(back)
            trees.append(tree)
            return [*out, *leaves]

        values, axes = ev.again(full, ev.axes(ins), primals)
        saved = axes[n:]

        def pull(*flat):
            back = jax.tree.unflatten(trees[-1], flat[: len(saved)])
            return list(back(tuple(flat[len(saved) :])))

        def backward(*flat):
            return tuple(ev.again(pull, [*saved, *axes[:n]], flat)[0])

        return tuple(values[:n]), jax.tree_util.Partial(backward, *values[n:])

    small.defvjp(forward, lambda saved, cotangents: saved(*cotangents))
    return list(small(*args))


rule("custom_vjp_call", evaluate=_custom_vjp)(_call)


MOST_STEPS, MOST_READS = 128, 1024
"""Longer scans stay loops in a flat program; those that do the same in every step also
where their steps would read channels more often: each reading is compiled for itself.
"""


def _scan(ev, eqn, sub, ins, outs, args):
    consts, carried = scan_counts(eqn.params)
    fixed, init = args[:consts], args[consts : consts + carried]
    stacked = any(value.param is not None for value in ins[consts + carried :])
    steps = eqn.params["length"]
    few = ev.unroll and steps * reads(sub[0]) <= MOST_READS
    if ev.flat and steps <= MOST_STEPS and (stacked or few):
        return _unrolled(ev, eqn, sub, args)

    def body(carry, xs):
        out = ev.run(sub[0], [*fixed, *carry, *xs])
        return tuple(out[:carried]), tuple(out[carried:])

    carry, ys = jax.lax.scan(
        body,
        tuple(init),
        tuple(args[consts + carried :]),
        **{key: eqn.params[key] for key in ("length", "reverse", "unroll")},
    )
    return [*carry, *ys]


def reads(frame: Any) -> int:
    """How many equations of a frame read channels, nested ones included."""
    inner = (sub for subs in frame.subs.values() for sub in subs)
    return len(frame.sites) + sum(map(reads, inner))


def _unrolled(ev, eqn, sub, args):
    """Layers that were stacked to be scanned over, or steps, one after another."""
    consts, carried = scan_counts(eqn.params)
    carry, length = list(args[consts : consts + carried]), eqn.params["length"]
    steps = range(length)
    found = []
    for i in reversed(steps) if eqn.params["reverse"] else steps:
        xs = [
            jax.lax.index_in_dim(a, i, keepdims=False) for a in args[consts + carried :]
        ]
        out = ev.run(sub[0], [*args[:consts], *carry, *xs])
        carry = out[:carried]
        found.append(out[carried:])
    if eqn.params["reverse"]:
        found.reverse()
    return [*carry, *(jax.numpy.stack(ys) for ys in zip(*found, strict=True))]


@rule("scan", evaluate=_scan)
def _scan_infer(w, eqn, ins):
    consts, carried = scan_counts(eqn.params)
    data = any(value.data for value in ins)
    # A carry that does not depend on data before the first step may do so after it.
    inner = [
        Value(v.dims, data=data, param=v.param, const=v.const and i < consts)
        for i, v in enumerate(ins[: consts + carried])
    ]
    for v in ins[consts + carried :]:
        w.solver.pin(v.dims[0], "the steps of a scan")
        inner.append(Value(v.dims[1:], data=v.data, param=v.param, const=v.const))
    with w.looping(eqn.params["length"]):
        frame = w.enter(eqn.params["jaxpr"], inner)
    outs = [Value(v.dims) for v in frame.outs]
    for before, after in zip(inner[consts:], outs[:carried], strict=False):
        w.solver.unify_all(before.dims, after.dims)
    steps = w.solver.new(eqn.params["length"], "the steps of a scan")
    ys = [Value((steps, *v.dims), summed=v.summed) for v in frame.outs[carried:]]
    return outs[:carried] + ys


def _while(ev, eqn, sub, ins, outs, args):
    p = eqn.params
    a, b = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    return list(
        jax.lax.while_loop(
            lambda c: ev.run(sub[0], [*args[:a], *c])[0],
            lambda c: tuple(ev.run(sub[1], [*args[a:b], *c])),
            tuple(args[b:]),
        )
    )


@rule("while", evaluate=_while)
def _while_infer(w, eqn, ins):
    p = eqn.params
    a, b = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    data = any(value.data for value in ins)
    inner = [Value(v.dims, data=data, param=v.param, const=v.const) for v in ins[:b]]
    inner += [Value(v.dims, data=data) for v in ins[b:]]
    with w.looping():
        w.enter(p["cond_jaxpr"], [*inner[:a], *inner[b:]])
        after = w.enter(p["body_jaxpr"], [*inner[a:b], *inner[b:]]).outs
    for before, value in zip(inner[b:], after, strict=True):
        w.solver.unify_all(before.dims, value.dims)
    return [value.dims for value in after]


def _cond(ev, eqn, sub, ins, outs, args):
    branches = [lambda *a, s=s: tuple(ev.run(s, a)) for s in sub]
    return list(jax.lax.switch(args[0], branches, *args[1:]))


@rule("cond", evaluate=_cond)
def _cond_infer(w, eqn, ins):
    inner = [v._replace(summed=None, known=None) for v in ins[1:]]
    with w.looping(), w.dearest() as branch:
        found = [branch(b, inner).outs for b in eqn.params["branches"]]
    for first, *others in zip(*found, strict=True):
        for other in others:
            w.solver.unify_all(first.dims, other.dims)
    return [Value(vs[0].dims, summed=joint(vs)) for vs in zip(*found, strict=True)]
