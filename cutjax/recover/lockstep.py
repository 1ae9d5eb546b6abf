"""Parent and child side by side: one function evaluated at both sizes, in segments.

The flat program is cut at its readers. Each segment is one compiled function that takes
the values still alive, of the parent and of the child, on to the next reader; there the
caller learns what the child reads and what the parent makes of it, and hands back a new
kernel for the child. Every equation runs once per batch and network.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cutjax._compat import Literal, bind
from cutjax.graph import Graph
from cutjax.readers import is_linear
from cutjax.resize import Evaluator, Reader, flattened, kept_of, to_var
from cutjax.rules.base import Value
from cutjax.walk import Frame, Walker


class Pair(NamedTuple):
    """One value of the parent and the same value of the child."""

    parent: Any
    child: Any


class Program(NamedTuple):
    """A flat function inferred over the graph's axes, with its readers.

    `stops`: index of the equation of each reader that can be refitted, in order.
    `numbers`: a number per variable, by which the values alive are kept.
    """

    frame: Frame
    evaluator: Evaluator
    stops: tuple[int, ...]
    paths: tuple[str, ...]
    numbers: Mapping[Any, int]

    def reader(self, index: int) -> Reader:
        """The reader at an equation."""
        eqn = self.frame.jaxpr.eqns[index]
        ins = [self.frame.read(atom) for atom in eqn.invars]
        outs = [self.frame.values[var] for var in eqn.outvars]
        return Reader(eqn, self.frame.sites[index], ins, outs)


def program(
    apply: Callable[..., Any],
    graph: Graph,
    keep: Mapping[str, np.ndarray],
    inputs: Sequence,
) -> Program:
    """Trace, flatten and infer a function over a graph's parameters.

    Args:
        apply: the full function.
        graph: its graph.
        keep: the channels that the child keeps.
        inputs: one batch of inputs.

    Returns:
        The program; readers whose parameter is read more than once are not among stops.
    """
    leaves, tree = jax.tree.flatten(tuple(inputs))
    n = len(graph.shapes)

    def flat(*args: Any) -> list[Any]:
        params = jax.tree.unflatten(graph.treedef, args[:n])
        return jax.tree.leaves(apply(params, *jax.tree.unflatten(tree, args[n:])))

    given = [
        jax.ShapeDtypeStruct(np.shape(a), jax.numpy.result_type(a)) for a in leaves
    ]
    jaxpr = flattened(flat, [*graph.shapes.values(), *given])
    walker, table = Walker(graph.on_unknown), {}
    ins = [
        Value(tuple(to_var(walker.solver, a, table) for a in axes), param=i)
        for i, axes in enumerate(graph.axes.values())
    ]
    ins += [Value(walker.solver.news(a.shape, "an input"), data=True) for a in given]
    frame = walker.run(jaxpr, ins)
    numbers = {var: i for i, var in enumerate(frame.values)}
    whole = Program(
        frame, Evaluator(kept_of(table, keep)), (), tuple(graph.shapes), numbers
    )
    found = [i for i in sorted(frame.sites) if is_linear(whole.reader(i))]
    read = [_kernel(whole.reader(i)).param for i in found]
    stops = tuple(i for i, p in zip(found, read, strict=True) if read.count(p) == 1)
    return whole._replace(stops=stops)


def _kernel(reader: Reader) -> Value:
    return reader.ins[1 - reader.site.at]


def segment(prog: Program, number: int) -> Callable[..., tuple]:
    """The step from reader `number - 1` (or the start) up to reader `number`.

    Returns:
        `f(params, alive, kernel) -> (alive, read, made, kernels)`: `params` a pair of
        lists, `alive` pairs of values by number, `kernel` the child's new kernel at the
        reader before (None at the start). `read` is the operand of the reader, a pair;
        `made` what the parent makes of it, cut to the child's channels; `kernels` the
        kernels as they stand, a pair.
    """
    eqns, stop = prog.frame.jaxpr.eqns, prog.stops[number]
    start = prog.stops[number - 1] if number else 0
    alive_after = _alive(prog, stop)
    reader = prog.reader(stop)
    at = reader.site.at

    def run(params: Pair, alive: Mapping[int, Pair], kernel: Any) -> tuple:
        parent = _env(prog, params.parent, alive, 0)
        child = _env(prog, params.child, alive, 1)
        # The parent is one equation ahead: it has made what the reader makes.
        first = start + 1 if number else 0
        for index in range(first, stop + 1):
            _bind_parent(eqns[index], parent)
        for index in range(start, stop):
            args = [_read(child, atom) for atom in eqns[index].invars]
            if number and index == start:
                args[1 - prog.reader(index).site.at] = kernel
            outs = prog.evaluator.step(prog.frame, index, eqns[index], args)
            child.update(zip(eqns[index].outvars, outs, strict=True))
        ids = prog.numbers
        left = {ids[v]: Pair(parent.get(v), child.get(v)) for v in alive_after}
        (out,) = eqns[stop].outvars
        left[ids[out]] = Pair(parent[out], None)
        made = prog.evaluator.cut_const(parent[out], prog.frame.values[out])
        operands = eqns[stop].invars
        read = Pair(_read(parent, operands[at]), _read(child, operands[at]))
        kernels = Pair(_read(parent, operands[1 - at]), _read(child, operands[1 - at]))
        return left, read, made, kernels

    return run


def _bind_parent(eqn: Any, env: dict) -> None:
    outs = bind(eqn, [_read(env, atom) for atom in eqn.invars], eqn.params)
    env.update(zip(eqn.outvars, outs, strict=True))


def _read(env: Mapping, atom: Any) -> Any:
    return atom.val if isinstance(atom, Literal) else env[atom]


def _env(
    prog: Program, params: Sequence[Any], alive: Mapping[int, Pair], side: int
) -> dict:
    jaxpr = prog.frame.jaxpr
    named = list(prog.numbers)
    env = dict(zip(jaxpr.invars, params, strict=False))
    for var, const in zip(jaxpr.constvars, prog.frame.consts, strict=True):
        value = prog.frame.values[var]
        env[var] = prog.evaluator.cut_const(const, value) if side else const
    env.update(
        {named[i]: pair[side] for i, pair in alive.items() if pair[side] is not None}
    )
    return env


def _alive(prog: Program, stop: int) -> list[Any]:
    """Variables made before an equation and needed from it on."""
    jaxpr = prog.frame.jaxpr
    fixed = set(jaxpr.invars[: len(prog.paths)]) | set(jaxpr.constvars)
    before = {v for eqn in jaxpr.eqns[:stop] for v in eqn.outvars} | set(jaxpr.invars)
    last = prog.stops[-1]
    needed = [
        atom
        for eqn in jaxpr.eqns[stop : last + 1]
        for atom in eqn.invars
        if not isinstance(atom, Literal) and atom in before and atom not in fixed
    ]
    return list(dict.fromkeys(needed))


def kernel_path(prog: Program, index: int) -> str:
    """The path of the parameter that a reader's kernel is a moved copy of."""
    return prog.paths[_kernel(prog.reader(index)).param]  # type: ignore[index]


def pull_back(prog: Program, index: int, kernel: Any, like: Any) -> Any:
    """The parameter whose moved copy at a reader is `kernel`; `like` has its shape."""
    param = _kernel(prog.reader(index)).param
    eqns = prog.frame.jaxpr.eqns
    target = eqns[index].invars[1 - prog.reader(index).site.at]
    chain, wanted = [], {target}
    for i in range(index - 1, -1, -1):
        if wanted & set(eqns[i].outvars):
            chain.append(i)
            wanted |= {a for a in eqns[i].invars if not isinstance(a, Literal)}

    def forward(value: Any) -> Any:
        env = {prog.frame.jaxpr.invars[param]: value}
        for i in reversed(chain):
            args = [_read(env, atom) for atom in eqns[i].invars]
            outs = prog.evaluator.step(prog.frame, i, eqns[i], args)
            env.update(zip(eqns[i].outvars, outs, strict=True))
        return env[target]

    # Moving is linear and orthogonal: its transpose is its inverse.
    back = jax.linear_transpose(forward, jax.ShapeDtypeStruct(like.shape, like.dtype))
    return back(kernel)[0]
