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
from cutjax.recover.contracted import contracted
from cutjax.resize import Evaluator, Reader, flattened, kept_of, to_var
from cutjax.rules.base import Value
from cutjax.unify import Var
from cutjax.walk import Frame, Walker

SAME = frozenset(map(primitive, ("convert_element_type", "copy", "reduce_precision")))
"""What changes no position: only how a number is kept."""

NEG = primitive("neg")

MOVES = SAME | frozenset(
    map(primitive, ("reshape", "transpose", "squeeze", "slice", "rev", "split"))
)

PAD = primitive("pad")
JOINS = frozenset({PAD, *map(primitive, ("concatenate", "stack"))})
"""What puts parameters together, each number that of one place or of none."""

NOWHERE = -1
"""The position of what no parameter holds: padding."""


class Program(NamedTuple):
    """A flat function inferred over the graph's axes.

    `paths`: its parameters, the first inputs. `numbers`: a number per variable, by
    which values alive are kept. `users`: equations that read a variable, -1 for an
    output. `origins`: the parameter that a variable is a moved copy of, or a part of.
    `sources`: all parameters that it is put together of, in order; of a moved copy that
    one. `groups`: the dimension of each group.
    """

    frame: Frame
    evaluator: Evaluator
    paths: tuple[str, ...]
    numbers: Mapping[Any, int]
    users: Mapping[Any, tuple[int, ...]]
    origins: Mapping[Any, int]
    sources: Mapping[Any, tuple[int, ...]]
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

    def sizes(self, var: Any) -> tuple[int, ...]:
        """The shape of a variable in the child."""
        return tuple(map(self.evaluator.k.count, self.frame.values[var].dims))


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
    jaxpr = contracted(flattened(flat, avals, n, unroll=unroll), n)
    jaxpr = taken_apart(jaxpr, n)
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
    origins = {var: number for var, (number,) in _sources(frame, MOVES).items()}
    return Program(
        *(frame, evaluator, paths, numbers, _users(frame), origins),
        *(_sources(frame, MOVES | JOINS), groups),
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


def _sources(frame: Frame, moves: Container[Any]) -> dict[Any, tuple[int, ...]]:
    """The parameters that variables are made of, by these operations alone.

    Unlike `Value.param`, a slice of a parameter counts: a layer of a stack. What is
    negated does not, nor what is made of that: its values are others.
    """
    values = frame.values.items()
    found = {v: (value.param,) for v, value in values if value.param is not None}
    negated = set[Any]()
    for eqn in frame.jaxpr.eqns:
        named = [a for a in eqn.invars if not isinstance(a, Literal)]
        if eqn.primitive is NEG or not negated.isdisjoint(named):
            negated.update(eqn.outvars)
            for var in eqn.outvars:
                _ = found.pop(var, None)
        elif eqn.primitive in moves:
            ins = eqn.invars[:1] if eqn.primitive is PAD else eqn.invars
            parts = [() if isinstance(a, Literal) else found.get(a, ()) for a in ins]
            if all(parts):
                made = tuple(sorted({number for part in parts for number in part}))
                found.update(dict.fromkeys(eqn.outvars, made))
    return found


def read(env: Mapping, atom: Any) -> Any:
    """The value of an operand."""
    return atom.val if isinstance(atom, Literal) else env[atom]


def terminals(prog: Program, number: int) -> set[int]:
    """The equations that use a parameter, moved or not; -1 if it is an output."""
    found, eqns = set(), prog.frame.jaxpr.eqns
    for var in (v for v, made_of in prog.sources.items() if number in made_of):
        for index in prog.users.get(var, ()):
            outs = () if index < 0 else eqns[index].outvars
            if not any(number in prog.sources.get(out, ()) for out in outs):
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


def behind(prog: Program, atom: Any) -> set[int]:
    """The numbers of the parameters that a value is made of."""
    if isinstance(atom, Literal):
        return set()
    made = [prog.frame.jaxpr.eqns[i] for i in needs(prog, [atom])]
    atoms = {a for eqn in made for a in eqn.invars if not isinstance(a, Literal)}
    params = prog.frame.jaxpr.invars[: len(prog.paths)]
    return {i for i, var in enumerate(params) if var in atoms or var is atom}


def positions(
    prog: Program, var: Any, *shapes: Sequence[int]
) -> Int[np.ndarray, "..."]:
    """Where in its parameters the values of `var` lie; the child's sizes.

    Args:
        prog: the program.
        var: a variable that is a moved copy of a parameter, or is put together of some.
        shapes: of these in the child, in the order of `prog.sources`.

    Returns:
        Flat positions in those parameters laid end to end, shaped like the child's
        `var`; NOWHERE of padding.
    """
    env, at = {}, 0
    for number, shape in zip(prog.sources[var], shapes, strict=True):
        after = at + int(np.prod(shape))
        place = np.arange(at, after, dtype=np.int32).reshape(shape)
        env[prog.frame.jaxpr.invars[number]], at = place, after
    for index in needs(prog, [var], known=env):
        eqn = prog.frame.jaxpr.eqns[index]
        if eqn.primitive is PAD:
            args = [env[eqn.invars[0]], np.int32(NOWHERE)]
        else:
            args = [read(env, atom) for atom in eqn.invars]
        outs = args[:1]
        if eqn.primitive not in SAME:
            outs = prog.evaluator.step(prog.frame, index, eqn, args)
        env.update(zip(eqn.outvars, outs, strict=True))
    return np.asarray(env[var])
