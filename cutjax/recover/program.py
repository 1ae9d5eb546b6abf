"""A function over a graph's parameters as one flat program at two sizes."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from cutjax._compat import Literal, primitive
from cutjax.given import calling
from cutjax.graph import Graph
from cutjax.recover.apart import taken_apart
from cutjax.resize import Evaluator, Reader, flattened, kept_of, to_var
from cutjax.rules.base import Value
from cutjax.unify import Var
from cutjax.walk import Frame, Walker

SAME = frozenset(map(primitive, ("convert_element_type", "copy", "reduce_precision")))
"""What changes no position: only how a number is kept."""

MOVES = SAME | frozenset(
    map(primitive, ("reshape", "transpose", "squeeze", "slice", "rev", "split"))
)


class Program(NamedTuple):
    """A flat function inferred over the graph's axes.

    `paths`: its parameters, the first inputs. `numbers`: a number per variable, by
    which values alive are kept. `users`: equations that read a variable, -1 for an
    output. `origins`: the parameter that a variable is a moved copy of, or a part of.
    `groups`: the dimension of each group.
    """

    frame: Frame
    evaluator: Evaluator
    paths: tuple[str, ...]
    numbers: Mapping[Any, int]
    users: Mapping[Any, tuple[int, ...]]
    origins: Mapping[Any, int]
    groups: Mapping[str, Var]

    def reader(self, index: int) -> Reader:
        """The reader at an equation."""
        eqn = self.frame.jaxpr.eqns[index]
        ins = [self.frame.read(atom) for atom in eqn.invars]
        outs = [self.frame.values[var] for var in eqn.outvars]
        return Reader(eqn, self.frame.sites[index], ins, outs)

    def kernel(self, index: int) -> Any:
        """The operand of a reader that it is read by."""
        return self.frame.jaxpr.eqns[index].invars[1 - self.frame.sites[index].at]


def program(
    apply: Callable[..., Any],
    graph: Graph,
    keep: Mapping[str, np.ndarray],
    inputs: Sequence,
    *,
    unroll: bool = True,
) -> Program:
    """Trace, flatten and infer a function over a graph's parameters.

    Args:
        apply: the full function.
        graph: its graph.
        keep: the channels that the child keeps.
        inputs: one batch of inputs, or their shapes.
        unroll: recurrences, or leave them loops (see `loops`).
    """
    leaves, tree = jax.tree.flatten(tuple(inputs))
    n = len(graph.shapes)

    def flat(*args: Any) -> list[Any]:
        params = jax.tree.unflatten(graph.treedef, args[:n])
        given = jax.tree.unflatten(tree, args[n:])
        with calling(given, graph.inputs):
            return jax.tree.leaves(apply(params, *given))

    given = [jax.ShapeDtypeStruct(np.shape(a), jnp.result_type(a)) for a in leaves]
    avals = [*graph.shapes.values(), *given]
    jaxpr = taken_apart(flattened(flat, avals, n, unroll=unroll), n)
    walker, table = Walker(graph.on_unknown), {}
    ins = [
        Value(tuple(to_var(walker.solver, a, table) for a in axes), param=i)
        for i, axes in enumerate(graph.axes.values())
    ]
    ins += [Value(walker.solver.news(a.shape, "an input"), data=True) for a in given]
    frame = walker.run(jaxpr, ins)
    return of_frame(frame, Evaluator(kept_of(table, keep)), tuple(graph.shapes), table)


def of_frame(
    frame: Frame,
    evaluator: Evaluator,
    paths: tuple[str, ...],
    groups: Mapping[str, Var],
) -> Program:
    """The program of a frame whose first inputs are the parameters."""
    numbers = {var: i for i, var in enumerate(frame.values)}
    return Program(
        *(frame, evaluator, paths, numbers, _users(frame), _origins(frame), groups)
    )


def _users(frame: Frame) -> dict[Any, tuple[int, ...]]:
    found: dict[Any, list[int]] = {}
    for index, eqn in enumerate(frame.jaxpr.eqns):
        for atom in eqn.invars:
            if not isinstance(atom, Literal):
                found.setdefault(atom, []).append(index)
    for atom in frame.jaxpr.outvars:
        if not isinstance(atom, Literal):
            found.setdefault(atom, []).append(-1)
    return {var: tuple(users) for var, users in found.items()}


def _origins(frame: Frame) -> dict[Any, int]:
    """Unlike `Value.param`, a slice of a parameter counts: a layer of a stack."""
    found = {v: value.param for v, value in frame.values.items()}
    for eqn in frame.jaxpr.eqns:
        if eqn.primitive in MOVES and not isinstance(eqn.invars[0], Literal):
            for var in eqn.outvars:
                found[var] = found.get(eqn.invars[0])
    return {var: param for var, param in found.items() if param is not None}


def read(env: Mapping, atom: Any) -> Any:
    """The value of an operand."""
    return atom.val if isinstance(atom, Literal) else env[atom]


def terminals(prog: Program, number: int) -> set[int]:
    """The equations that use a parameter, moved or not; -1 if it is an output."""
    origins, found = prog.origins, set()
    eqns = prog.frame.jaxpr.eqns
    for var in (v for v, origin in origins.items() if origin == number):
        for index in prog.users.get(var, ()):
            outs = () if index < 0 else eqns[index].outvars
            if not any(origins.get(out) == number for out in outs):
                found.add(index)
    return found


def needs(prog: Program, atoms: Iterable[Any], known: Container[Any] = ()) -> list[int]:
    """The equations that make some variables from those `known`, in order."""
    wanted, found = {a for a in atoms if not isinstance(a, Literal)}, set()
    todo = list(wanted)
    while todo:
        var = todo.pop()
        index = None if var in known else prog.frame.makers.get(var)
        if index is not None and index not in found:
            found.add(index)
            eqn = prog.frame.jaxpr.eqns[index]
            todo += [a for a in eqn.invars if not isinstance(a, Literal)]
    return sorted(found)


def positions(prog: Program, var: Any, shape: Sequence[int]) -> Int[np.ndarray, "..."]:
    """Where in a parameter the values of its moved copy `var` lie; the child's sizes.

    Args:
        prog: the program.
        var: a variable that is a moved copy of a parameter.
        shape: of that parameter in the child.

    Returns:
        Flat positions, shaped like the child's `var`.
    """
    param = prog.frame.jaxpr.invars[prog.origins[var]]
    size = int(np.prod(shape))
    env = {param: np.arange(size, dtype=np.int32).reshape(shape)}
    for index in needs(prog, [var]):
        eqn = prog.frame.jaxpr.eqns[index]
        args = [read(env, atom) for atom in eqn.invars]
        outs = args[:1]
        if eqn.primitive not in SAME:
            outs = prog.evaluator.step(prog.frame, index, eqn, args)
        env.update(zip(eqn.outvars, outs, strict=True))
    return np.asarray(env[var])
