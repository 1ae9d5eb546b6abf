"""Recurrences: what is read in every step of a loop, measured within the loop.

One step is a program of its own, over the same parameters. Parent and child take it
side by side; what its readers read and should make comes out of the loop as rows, those
of all steps together.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from cutjax._compat import Literal, open_jaxpr, scan_counts
from cutjax.recover.apart import taken_apart
from cutjax.recover.contracted import contracted
from cutjax.recover.follow import whole
from cutjax.recover.program import Program, needs, of_frame, read
from cutjax.resize import Evaluator, flattened, kept_of
from cutjax.rules.base import Value
from cutjax.rules.control import reads
from cutjax.walk import Walker

SCAN = jax.lax.scan_p


class Loop(NamedTuple):
    """A scan that does the same in every step.

    `index`: its equation, of `steps` steps; `varies` are those of its operands that are
    carried or scanned over. `prog`: one step, a function of all parameters and then of
    data: the operands numbered in `given`, and what varies.
    """

    index: int
    steps: int
    prog: Program
    given: tuple[int, ...]
    varies: tuple[Any, ...]


def with_loops(
    prog: Program, keep: Mapping[str, np.ndarray]
) -> tuple[Program, dict[int, Loop]]:
    """A program, and the loops in it that read channels, by equation.

    Args:
        prog: a program whose recurrences were left loops.
        keep: the channels that the child keeps.
    """
    subs = prog.frame.subs.items()
    scans = [i for i, _ in subs if prog.frame.jaxpr.eqns[i].primitive is SCAN]
    found = [_loop(prog, i) for i in scans if any(map(reads, prog.frame.subs[i]))]
    # Inferring steps may have joined variables: what is kept is stated anew.
    evaluator = Evaluator(kept_of(prog.groups, keep))
    loops = {
        loop.index: loop._replace(prog=loop.prog._replace(evaluator=evaluator))
        for loop in found
    }
    return prog._replace(evaluator=evaluator), loops


def _loop(prog: Program, index: int) -> Loop:
    eqn, n = prog.frame.jaxpr.eqns[index], len(prog.paths)
    consts, carried = scan_counts(eqn.params)
    params, values = prog.frame.jaxpr.invars[:n], list(map(prog.frame.read, eqn.invars))
    given = tuple(i for i in range(consts) if values[i].data)
    fixed = [a for i, a in enumerate(eqn.invars[:consts]) if i not in given]
    aside, body = needs(prog, fixed), jaxpr_as_fun(eqn.params["jaxpr"])

    def step(*args: Any) -> Any:
        env = dict(zip(params, args, strict=False))
        env.update(zip(prog.frame.jaxpr.constvars, prog.frame.consts, strict=True))
        for at in aside:
            env.update(whole(prog, at, env))
        rest = iter(args[n:])
        operands = [
            next(rest) if i in given else read(env, atom)
            for i, atom in enumerate(eqn.invars[:consts])
        ]
        return body(*operands, *rest)

    ins = [prog.frame.values[var] for var in params]
    ins += [Value(values[i].dims, data=True) for i in given]
    ins += [Value(v.dims, data=True) for v in values[consts : consts + carried]]
    ins += [Value(v.dims[1:], data=True) for v in values[consts + carried :]]
    avals = [var.aval for var in params]
    avals += [eqn.invars[i].aval for i in given]
    avals += [var.aval for var in open_jaxpr(eqn.params["jaxpr"])[0].invars[consts:]]
    jaxpr = taken_apart(contracted(flattened(step, avals, n), n), n)
    frame = Walker("pin").run(jaxpr, ins)
    inner = of_frame(frame, prog.evaluator, prog.paths, prog.groups)
    varies = tuple(a for a in eqn.invars[consts:] if not isinstance(a, Literal))
    return Loop(index, eqn.params["length"], inner, given, varies)
