"""Whether the functions of networks do the same, equation by equation.

A merged network runs what is shared as the first of those that share has it, and what
is a network's own as that network has it. So numbers that are written into a function
(slopes, the mean that it takes off its inputs) may differ, but not in what is shared.
"""

import enum
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from cutjax._compat import Literal, open_jaxpr, user_line
from cutjax.errors import MismatchError
from cutjax.recover.program import Program

PLAIN = (bool, int, float, complex, str, np.dtype, enum.Enum, type(None))
"""Types of the parameters of equations that can be compared; rules are not."""

NAMES = frozenset(("name", "weak_type"))
"""Parameters that change no result."""


def same_program(a: Program, b: Program, names: tuple[str, str]) -> None:
    """Check that two networks do the same but for numbers that are written in.

    Args:
        a: a network.
        b: another.
        names: of both.

    Raises:
        MismatchError: names the first difference.
    """
    if a.frame is b.frame:
        return
    one, other = a.frame.jaxpr.eqns, b.frame.jaxpr.eqns
    numbers = [len(p.frame.jaxpr.outvars) for p in (a, b)]
    outs = "they return {} and {} arrays; ".format(*numbers)
    outs = "" if numbers[0] == numbers[1] else outs
    for x, y in zip(one, other, strict=False):
        if x.primitive is not y.primitive:
            raise MismatchError(
                f"networks {names[0]!r} and {names[1]!r} do not compute alike: {outs}"
                f"{_types(a, b, names)}`{x.primitive}` at {user_line(x.source_info)} "
                f"against `{y.primitive}` at {user_line(y.source_info)}"
            )
    if len(one) != len(other):
        raise MismatchError(
            f"networks {names[0]!r} and {names[1]!r} do not compute alike: {outs}"
            f"{len(one)} operations against {len(other)}"
        )


def _types(a: Program, b: Program, names: tuple[str, str]) -> str:
    """The first parameter that is of another type in both."""
    variables = zip(a.paths, a.frame.jaxpr.invars, b.frame.jaxpr.invars, strict=False)
    for path, *pair in variables:
        one, other = (var.aval.dtype for var in pair)
        if one != other:
            return f"{path!r} is {one} in {names[0]!r} and {other} in {names[1]!r}; "
    return ""


def same_numbers(
    a: Program, b: Program, indices: Container[int], names: tuple[str, str]
) -> None:
    """Check that some equations of two networks do the same to the last number.

    Args:
        a: a network.
        b: another, of the same equations, see `same_program`.
        indices: of the equations.
        names: of both networks.

    Raises:
        MismatchError: names the first difference.
    """
    if a.frame is b.frame:
        return
    one, other = (Body(p.frame.jaxpr, p.frame.consts) for p in (a, b))
    for x, y in _differences(one, other, indices):
        raise MismatchError(
            f"networks {names[0]!r} and {names[1]!r} do not compute alike what they "
            f"share: {x} against {y}\n"
            "  try: what differs as a parameter or an input; or do not share what "
            "depends on it, see `cutjax.merge.until`"
        )


class Body(NamedTuple):
    """Equations, and the values of their constants."""

    jaxpr: Any
    consts: Sequence[Any]

    def constants(self) -> dict[Any, Any]:
        """By variable."""
        return dict(zip(self.jaxpr.constvars, self.consts, strict=True))


def _differences(
    a: Body, b: Body, indices: Container[int] | None = None
) -> Iterator[tuple[str, str]]:
    """What differs in some equations of two bodies, or in all; in words, of both."""
    known, one, other = (a.constants(), b.constants()), a.jaxpr, b.jaxpr
    twins = dict(zip(one.invars, other.invars, strict=False))
    for index, (x, y) in enumerate(zip(one.eqns, other.eqns, strict=False)):
        if indices is None or index in indices:
            if x.primitive is not y.primitive:
                yield _placed(x), _placed(y)
            for what, instead in (*_operands(x, y, known, twins), *_params(x, y)):
                yield f"{_placed(x)} with {what}", f"{instead} at {_line(y)}"
            for pair in zip(_bodies(x), _bodies(y), strict=False):
                yield from _differences(*pair)
        twins.update(zip(x.outvars, y.outvars, strict=False))
    if len(one.eqns) != len(other.eqns):
        yield f"{len(one.eqns)} operations", f"{len(other.eqns)}"


def _placed(eqn: Any) -> str:
    return f"`{eqn.primitive}` at {_line(eqn)}"


def _line(eqn: Any) -> str:
    return user_line(eqn.source_info) or "an unknown line"


def _operands(
    x: Any,
    y: Any,
    known: tuple[Mapping[Any, Any], Mapping[Any, Any]],
    twins: Mapping[Any, Any],
) -> Iterator[tuple[str, str]]:
    """Constants that differ, and what is computed from something else.

    Args:
        x: an equation.
        y: another.
        known: the constants of both functions, by variable.
        twins: variables of the second function by those of the first.
    """
    for pair in zip(x.invars, y.invars, strict=False):
        one, other = (
            a.val if isinstance(a, Literal) else consts.get(a)
            for a, consts in zip(pair, known, strict=True)
        )
        if one is not None and other is not None:
            dtypes = [atom.aval.dtype for atom in pair]
            yield from _unequal(one, other, dtypes)
        elif one is not None or other is not None:
            what = "a result", "a constant"
            yield what if one is None else (what[1], what[0])
        elif twins.get(pair[0]) is not pair[1]:
            yield "one operand", "another"


def _unequal(one: Any, other: Any, dtypes: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Where two constants first differ, if they do; of traced ones who knows."""
    if one is other or any(isinstance(v, Tracer) for v in (one, other)):
        return
    a, b = map(_host, (one, other), dtypes)
    if np.array_equal(a, b):
        return
    if a.shape != b.shape:
        yield f"a constant {list(a.shape)}", f"{list(b.shape)}"
        return
    wrong = (a != b) & ~((a != a) & (b != b))  # NaN equals NaN
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0].tolist())
        place = f" (entry {list(at)} of {list(a.shape)})" if at else ""
        yield f"{a[at]!s}{place}", str(b[at])


def _host(constant: Any, dtype: Any) -> np.ndarray:
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(constant))
    # A number that is written in may be kept as more than is computed with.
    return np.asarray(constant, dtype)


def _params(x: Any, y: Any) -> Iterator[tuple[str, str]]:
    """Parameters of two equations that differ: axes, strides, dtypes."""
    for key, one in x.params.items():
        other = y.params.get(key)
        if key not in NAMES and _is_plain(one) and _is_plain(other) and one != other:
            yield f"{key}={one}", f"{key}={other}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN)


def _bodies(eqn: Any) -> list[Body]:
    """The functions that an equation calls: loops, branches, what has rules."""
    found = []
    for value in eqn.params.values():
        values = value if isinstance(value, tuple | list) else [value]
        found += [Body(*open_jaxpr(v)) for v in values if hasattr(v, "eqns")]
    return found
