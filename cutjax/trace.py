"""`trace`: from any function to its channel groups."""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from cutjax.cost import Term
from cutjax.dims import Axis, Fixed, Leaf, leaves
from cutjax.errors import CutjaxError, KeepError, MismatchError, suggest
from cutjax.graph import Graph, Group, Member
from cutjax.liveness import mark
from cutjax.mirror import mirrored, named_leaves
from cutjax.resize import freeze
from cutjax.rules.base import Value
from cutjax.unify import WINDOW, Pin, Var, leaf_vars
from cutjax.walk import Walker, line_of

OUTPUT = "output"


def trace(
    apply: Any,
    params: Any,
    *inputs: Any,
    pin: Iterable[str] = (),
    on_unknown: str = "raise",
) -> Graph:
    """Infer which channels of which parameters live and die together.

    Args:
        apply: a pure function `apply(params, *inputs) -> {task: output}`; a result that
            is not a dict is one task, `output`. Outputs that mirror parameters (new
            BatchNorm statistics) carry state and pin nothing.
        params: any pytree of arrays, or of `jax.ShapeDtypeStruct`.
        *inputs: arrays or shapes of one batch.
        pin: patterns (`head/*`, or a group's name) of what must stay whole.
        on_unknown: "raise" for a primitive without a rule, or "pin" to keep whole
            whatever reaches it.

    Returns:
        The graph; `print(graph)` shows one line per group.

    Raises:
        TraceError: a primitive has no rule; the message names the line of code.
        MismatchError: the function does not accept the parameters and inputs.

    Example:
        >>> import jax, jax.numpy as jnp, cutjax as cj
        >>> def apply(p, x):
        ...     return {"y": jax.nn.relu(x @ p["w1"]) @ p["w2"]}
        >>> params = {"w1": jnp.ones((3, 8)), "w2": jnp.ones((8, 2))}
        >>> [g.name for g in cj.trace(apply, params, jnp.ones((1, 3))).free]
        ['w1:1']
    """
    if on_unknown not in ("raise", "pin"):
        raise CutjaxError(f"on_unknown={on_unknown!r}; it takes 'raise' or 'pin'")
    shapes = {n: _shape(n, leaf) for n, leaf in named_leaves(params).items()}
    jaxpr, out = _jaxpr(apply, params, inputs)
    walker = Walker(on_unknown)
    ins = [
        Value(walker.solver.news(shape.shape), param=i)
        for i, shape in enumerate(shapes.values())
    ]
    given = [walker.solver.news(leaf.shape, "an input") for leaf in _leaves(inputs)]
    frame = walker.run(jaxpr, [*ins, *(Value(dims, data=True) for dims in given)])
    outputs, tasks = _tasks(out, shapes)
    for (task, _), value in zip(outputs, frame.outs, strict=True):
        for d in value.dims if task is not None else ():
            walker.solver.pin(d, f"the output of task {task!r}")
    marks, bits = mark(frame, [_bit(tasks, task) for task, _ in outputs])
    axes = dict(zip(shapes, (v.dims for v in ins), strict=True))
    reach = {name: _named(tasks, bit) for name, bit in zip(shapes, bits, strict=False)}
    _pin_matching(walker, axes, pin)
    names = _names(walker, axes)

    def name(var: Var) -> Axis:
        if var in names:
            return Leaf(names[var], var.size)
        return Fixed(var.size, var.pins[0].reason if var.pins else "")

    frozen = {p: tuple(freeze(d, name) for d in dims) for p, dims in axes.items()}
    terms = tuple(
        Term(
            t.times,
            tuple(freeze(d, name) for d in t.dims),
            _named(tasks, marks.get((id(t.frame), t.index), 0)),
        )
        for t in walker.terms
    )
    return Graph(
        groups=tuple(_groups(walker, names, frozen, reach)),
        tasks=tasks,
        axes=frozen,
        shapes=shapes,
        treedef=jax.tree.structure(params),
        reach=reach,
        terms=terms,
        inputs=tuple(f"{x.dtype}{list(x.shape)}" for x in _leaves(inputs)),
        on_unknown=on_unknown,
    )


def _shape(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise MismatchError(
            f"parameter {name!r} is a {type(leaf).__name__}, not an array; close over "
            "settings instead of passing them in the parameters"
        )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _leaves(tree: Any) -> list[Any]:
    return [
        leaf
        if hasattr(leaf, "shape")
        else jax.ShapeDtypeStruct((), jax.numpy.result_type(leaf))
        for leaf in jax.tree.leaves(tree)
    ]


def _jaxpr(apply: Any, params: Any, inputs: Sequence[Any]) -> tuple[Any, Any]:
    """The jaxpr over flat leaves, and the structure of the result."""
    try:
        return jax.make_jaxpr(apply, return_shape=True)(params, *inputs)
    except CutjaxError:
        raise
    except Exception as error:
        given = ", ".join(f"{x.dtype}{list(x.shape)}" for x in _leaves(inputs))
        raise MismatchError(
            f"the function cannot be called as apply(params, {given}): "
            f"{type(error).__name__}: {error}"
        ) from error


def _tasks(out: Any, shapes: Mapping[str, Any]) -> tuple[list, tuple[str, ...]]:
    """(task or None, leaf) per output leaf, and the tasks in order."""
    sizes = {name: s.shape for name, s in shapes.items()}
    several = isinstance(out, dict) and all(isinstance(task, str) for task in out)
    outputs = []
    for name, leaf in named_leaves(out).items():
        state = mirrored(name, leaf.shape, sizes) is not None
        task = name.split("/")[0] if several else OUTPUT
        outputs.append((None if state else task, leaf))
    return outputs, tuple(
        dict.fromkeys(task for task, _ in outputs if task is not None)
    )


def _bit(tasks: tuple[str, ...], task: str | None) -> int:
    return 0 if task is None else 1 << tasks.index(task)


def _named(tasks: tuple[str, ...], bits: int) -> tuple[str, ...]:
    return tuple(task for i, task in enumerate(tasks) if bits >> i & 1)


def _pin_matching(
    walker: Walker, axes: Mapping[str, tuple[Var, ...]], pin: Iterable[str]
) -> None:
    """Pin what the caller named: paths, axes or groups, as patterns."""
    for pattern in (pin,) if isinstance(pin, str) else pin:
        # A group that shares its axis has a number behind a dot: the axis is pinned.
        axis_pattern = re.sub(r"(:\d+)\.\d+$", r"\1", pattern)
        found = [
            d
            for path, dims in axes.items()
            for axis, d in enumerate(dims)
            if fnmatch.fnmatchcase(path, pattern)
            or fnmatch.fnmatchcase(f"{path}:{axis}", axis_pattern)
        ]
        for d in found:
            walker.solver.pin(d, f"pinned by the caller: {pattern!r}")
        if not found:
            raise KeepError(
                f"pin={pattern!r} matches nothing; {suggest(pattern, axes)}"
            )


def _names(walker: Walker, axes: Mapping[str, tuple[Var, ...]]) -> dict[Var, str]:
    """Names of the groups: where the weight that makes the channels holds them."""
    paths = list(axes)
    places: dict[Var, list[tuple[str, int, int]]] = {}
    for path, dims in axes.items():
        for axis, d in enumerate(dims):
            several = [v for v in leaf_vars(d) if v.size > 1]
            for at, var in enumerate(several):
                nth = at if len(several) > 1 else -1
                places.setdefault(var, []).append((path, axis, nth))
    makers: dict[Var, list[str]] = {}
    for param, made in walker.makers:
        for d in made:
            for var in leaf_vars(d):
                makers.setdefault(var, []).append(paths[param])
    order = {paths[i]: n for i, n in walker.used.items()}
    names = {}
    for var, found in places.items():
        if var.pins and all(pin.reason == WINDOW for pin in var.pins):
            continue
        path, axis, nth = _maker(found, makers.get(var, ()), order)
        names[var] = f"{path}:{axis}" + (f".{nth}" if nth >= 0 else "")
    return dict(sorted(names.items(), key=lambda kv: _rank(kv[1], order)))


def _maker(
    places: Sequence[tuple[str, int, int]],
    makers: Sequence[str],
    order: Mapping[str, int],
) -> tuple[str, int, int]:
    """The place that names a group: in its first maker, else in its first user."""
    by_path = {place[0]: place for place in reversed(places)}
    for path in makers:
        if path in by_path:
            return by_path[path]
    return min(places, key=lambda p: (order.get(p[0], len(order)), p))


def _rank(name: str, order: Mapping[str, int]) -> tuple[int, str]:
    path = name.rpartition(":")[0]
    return order.get(path, len(order)), name


def _groups(walker: Walker, names, frozen, reach) -> Iterable[Group]:
    members: dict[str, list[Member]] = {name: [] for name in names.values()}
    paths = list(frozen)
    used = {paths[i]: n for i, n in walker.used.items()}
    for path, axes in sorted(frozen.items(), key=lambda kv: used.get(kv[0], len(used))):
        for i, axis in enumerate(axes):
            for name in dict.fromkeys(leaf.name for leaf in leaves(axis)):
                members[name].append(Member(path, i, axis))
    means: dict[Var, list[str]] = {}
    for dims, where in walker.means:
        for var in {v for d in dims for v in leaf_vars(d)}:
            line = f"a mean runs over these channels at {line_of(where)}"
            means.setdefault(var, []).append(line)
    for var, name in names.items():
        pin = var.pins[0] if var.pins else None
        tasks = {task for m in members[name] for task in reach[m.path]}
        lines = (f"`{w.eqn.primitive}` at {line_of(w)}" for w in var.why)
        yield Group(
            name=name,
            size=var.size,
            members=tuple(members[name]),
            pinned=_said(pin) if pin else None,
            tasks=tuple(_in_order(reach, tasks)),
            notes=tuple(dict.fromkeys(means.get(var, ()))),
            ties=tuple(dict.fromkeys(lines)),
        )


def _said(pin: Pin) -> str:
    return f"{pin.reason}, {line_of(pin.where)}" if pin.where else pin.reason


def _in_order(reach: Mapping[str, tuple[str, ...]], tasks: set[str]) -> list[str]:
    known = dict.fromkeys(task for some in reach.values() for task in some)
    return [task for task in known if task in tasks]
