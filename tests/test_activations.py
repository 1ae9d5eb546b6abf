"""Activation memory: predicted from widths, counted in what `cut` returns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import pytest
from jax.extend.core import Literal
from jax.interpreters import partial_eval
from laws import CJ
from laws.tools import random_keep
from nets import NETS
from nets.turns import by_turns

import cutjax as cj
from cutjax.bench.flops import count_flops
from cutjax.cost import Activation
from cutjax.dims import Fixed

READERS = ("dot_general", "conv_general_dilated", "ragged_dot_general")


class Token(NamedTuple):
    """One array: a number of its own, its bytes, whether it depends on inputs."""

    number: int
    bytes: int
    data: bool


class Counter:
    """Reads a jaxpr as a list of arrays; calls hand their arguments through."""

    def __init__(self) -> None:
        self.read: dict[int, int] = {}
        self._made = 0

    def new(self, aval: Any, data: bool, times: int) -> Token:
        self._made += 1
        size = math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 0)
        return Token(self._made, size * times, data)

    def run(self, jaxpr: Any, args: Sequence[Token], times: int) -> list[Token]:
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        env = dict(zip(jaxpr.invars, args, strict=True))
        env |= {v: self.new(v.aval, False, times) for v in jaxpr.constvars}

        def get(atom: Any) -> Token:
            constant = isinstance(atom, Literal) or atom not in env
            return self.new(atom.aval, False, times) if constant else env[atom]

        for eqn in jaxpr.eqns:
            outs = self.step(eqn, [get(a) for a in eqn.invars], times)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [get(atom) for atom in jaxpr.outvars]

    def step(self, eqn: Any, args: list[Token], times: int) -> list[Token]:
        name, p, data = eqn.primitive.name, eqn.params, any(a.data for a in args)
        if name in READERS:
            self.read |= {a.number: a.bytes for a in args if a.data}
        fresh = [self.new(v.aval, data, times) for v in eqn.outvars]
        if name == "scan":
            consts, carry = p["num_consts"], p["num_carry"]
            n, body = times * p["length"], getattr(p["jaxpr"], "jaxpr", p["jaxpr"])
            inner = [
                self.new(v.aval, data if i < carry else a.data, n)
                for i, (v, a) in enumerate(
                    zip(body.invars[consts:], args[consts:], strict=True)
                )
            ]
            self.run(body, [*args[:consts], *inner], n)
            return fresh
        if name == "while":
            a, b = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
            for side, known in (("cond", args[:a]), ("body", args[a:b])):
                body = getattr(p[f"{side}_jaxpr"], "jaxpr", p[f"{side}_jaxpr"])
                inner = [
                    self.new(v.aval, data, times) for v in body.invars[len(known) :]
                ]
                self.run(body, [*known, *inner], times)
            return fresh
        if name == "cond":
            dearest = max(p["branches"], key=lambda b: flops_of(b))
            self.run(dearest, args[1:], times)
            return fresh
        for value in p.values():
            body = getattr(value, "jaxpr", value)
            if hasattr(body, "eqns") and len(body.outvars) == len(eqn.outvars):
                if len(body.invars) == len(args):  # not how a scatter adds up
                    return self.run(body, args, times)
        return fresh


def flops_of(branch: Any) -> int:
    avals = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in branch.in_avals]
    return count_flops(jax.extend.core.jaxpr_as_fun(branch), *avals)


def counted(apply: Callable, params: Any, *inputs: Any) -> int:
    """Bytes of the arrays that depend on inputs and that contractions read."""
    closed = jax.make_jaxpr(apply)(params, *inputs)
    jaxpr: Any = closed.jaxpr
    alive, _ = partial_eval.dce_jaxpr(
        jaxpr, [True] * len(jaxpr.outvars), instantiate=True
    )
    counter, n = Counter(), len(jax.tree.leaves(params))
    args = [counter.new(v.aval, i >= n, 1) for i, v in enumerate(alive.invars)]
    counter.run(alive, args, 1)
    return sum(counter.read.values())


def check_activations(cj: Any, name: str, tasks: tuple[str, ...] | None = None) -> None:
    net = NETS[name]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    keep = random_keep(graph, 0)
    small, params = cj.cut(net.apply, net.params, graph, keep, tasks)
    found = graph.cost(keep, tasks).activations
    assert found == counted(small, params, *net.inputs)


@pytest.mark.parametrize("name", by_turns(NETS, 8))
def test_activations_are_what_is_counted(name):
    check_activations(CJ, name)


@pytest.mark.parametrize("name", ["mlp_tasks", "unet", "pointnet", "two_encoders"])
def test_activations_of_one_task(name):
    for task in NETS[name]().tasks:
        check_activations(CJ, name, (task,))


def test_they_do_not_change_under_jit_and_remat():
    net = NETS["resnet18"]()
    want = cj.trace(net.apply, net.params, *net.inputs).activations
    for wrapped in (jax.jit(net.apply), jax.checkpoint(net.apply)):
        graph = cj.trace(wrapped, net.params, *net.inputs)
        assert graph.activations == want


# Saboteurs. -------------------------------------------------------------------------


def broken(change: Callable[[cj.Graph], tuple[Activation, ...]]) -> SimpleNamespace:
    def trace(*args: Any) -> cj.Graph:
        graph = cj.trace(*args)
        return dataclasses.replace(graph, activations=change(graph))

    return SimpleNamespace(trace=trace, cut=cj.cut)


def per_reader(graph: cj.Graph) -> tuple[Activation, ...]:
    """An array counts once for every contraction that reads it."""
    first, *rest = graph.activations or ()
    return (first, first, *rest)


def full_size(graph: cj.Graph) -> tuple[Activation, ...]:
    """Arrays that never get smaller."""
    return tuple(
        a._replace(axes=tuple(Fixed(axis.size) for axis in a.axes))
        for a in graph.activations or ()
    )


def one_step(graph: cj.Graph) -> tuple[Activation, ...]:
    """A scan counts one of its steps."""
    return tuple(a._replace(bytes=min(a.bytes, 4)) for a in graph.activations or ())


@pytest.mark.parametrize(
    ("change", "name"),
    [(per_reader, "resnet18"), (full_size, "resnet18"), (one_step, "scanned")],
)
def test_saboteurs(change, name):
    check_activations(cj, name)
    with pytest.raises(AssertionError):
        check_activations(broken(change), name)
