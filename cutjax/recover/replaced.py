"""A flat jaxpr with some of its equations replaced."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from cutjax._compat import Literal, bind, open_jaxpr, scope_of

Read = Callable[[Any], Any]


def replaced(
    jaxpr: Any,
    instead: Callable[[Any, Read], Sequence[Any] | None],
    late: Callable[[Any], Any] | None = None,
) -> Any:
    """A closed jaxpr that computes the same in another way.

    Args:
        jaxpr: of a flat function.
        instead: of an equation, and of what reads the value of a variable: its outputs;
            none of them (`()`) where they are made `late`; None to leave it as it is.
        late: the value of a variable that was left out, once it is read.
    """
    inner, consts = open_jaxpr(jaxpr)

    def run(*args: Any) -> list[Any]:
        env = dict(zip(inner.invars, args, strict=True))
        env.update(zip(inner.constvars, consts, strict=True))

        def read(atom: Any) -> Any:
            if isinstance(atom, Literal):
                return atom.val
            if late is not None and atom not in env:
                env[atom] = late(atom)
            return env[atom]

        for eqn in inner.eqns:
            with scope_of(eqn):
                outs = instead(eqn, read)
                if outs is None:
                    outs = bind(eqn, [read(atom) for atom in eqn.invars], eqn.params)
            env.update(zip(eqn.outvars if outs else (), outs, strict=True))
        return [read(atom) for atom in inner.outvars]

    return jax.make_jaxpr(run)(*(var.aval for var in inner.invars))
