"""`trace`: from any function to its channel groups."""

import fnmatch
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from cutjax import proof, told, walk, zeros
from cutjax.activations import activations_of
from cutjax.cost import Term
from cutjax.dims import Axis, Fixed, Leaf, leaves
from cutjax.errors import CutjaxError, KeepError, MismatchError, TraceError, suggest
from cutjax.flow import flow_of
from cutjax.given import calling, several
from cutjax.graph import Graph, Group, Member
from cutjax.liveness import mark
from cutjax.mirror import examples_axis, mirrored, named_leaves, path_name, states
from cutjax.naming import names_of, pin_crumbs, pin_unused
from cutjax.proof import ties_of
from cutjax.resize import freeze
from cutjax.rules.base import Value
from cutjax.unify import Var, leaf_vars
from cutjax.walk import Frame, Walker, line_of, said

OUTPUT = "output"
UNUSED = "not used here; to cut it too, trace a function that uses it (train mode)"


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
        TraceError: a primitive has no rule; the message names the line of code. Or two
            parameters have one name.
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
    _check_names(params)
    shapes = {n: _shape(n, leaf) for n, leaf in named_leaves(params).items()}
    jaxpr, out = _jaxpr(apply, params, inputs)
    walker = Walker(on_unknown)
    frame = _walk(walker, jaxpr, shapes, inputs)
    outputs = _tasks(out, frame, shapes, jax.tree.structure(params), inputs)
    tasks = tuple(dict.fromkeys(task for task in outputs if task is not None))
    _pin_outputs(walker, frame, outputs)
    axes = {
        n: frame.values[v].dims
        for n, v in zip(shapes, frame.jaxpr.invars, strict=False)
    }
    pin_unused(walker, axes)
    pin_crumbs(walker, axes)
    _pin_matching(walker, axes, pin)
    marks, bits = mark(frame, [_bit(tasks, task) for task in outputs])
    reach = {name: _named(tasks, bit) for name, bit in zip(shapes, bits, strict=False)}
    names = names_of(walker, axes)

    def name(var: Var) -> Axis:
        if var in names:
            return Leaf(names[var], var.size)
        return Fixed(var.size, var.pins[0].reason if var.pins else "")

    def axis(var: Var) -> Axis:
        return freeze(var, name)

    frozen = {p: tuple(map(axis, dims)) for p, dims in axes.items()}
    paths = list(shapes)
    bits = (marks.get((id(t.frame), t.index), 0) for t in walker.terms)
    served = [_named(tasks, b) for b in bits]
    return Graph(
        groups=tuple(_groups(walker, names, axes, frozen, reach, tasks)),
        tasks=tasks,
        axes=frozen,
        shapes=shapes,
        treedef=jax.tree.structure(params),
        reach=reach,
        terms=tuple(
            _term(t, name, paths, found)
            for t, found in zip(walker.terms, served, strict=True)
        ),
        inputs=tuple(f"{x.dtype}{list(x.shape)}" for x in _leaves(inputs)),
        on_unknown=on_unknown,
        activations=activations_of(walker, axis, served),
        flow=flow_of(frame, axis, outputs),
    )


def _walk(
    walker: Walker, jaxpr: Any, shapes: Mapping[str, Any], inputs: Sequence[Any]
) -> Frame:
    """Walk the function; pin what goes in."""
    s = walker.solver
    params = [Value(s.news(a.shape), param=i) for i, a in enumerate(shapes.values())]
    given = (s.news(leaf.shape, "an input") for leaf in _leaves(inputs))
    return walker.run(jaxpr, [*params, *(Value(dims, data=True) for dims in given)])


def _pin_outputs(walker: Walker, frame: Frame, outputs: Sequence[str | None]) -> None:
    """Pin what comes out, and what constants tell apart."""
    for task, value in zip(outputs, frame.outs, strict=True):
        for d in value.dims if task is not None else ():
            walker.solver.pin(d, f"the output of task {task!r}")
    told.pin_constants(walker)


def _term(
    term: walk.Term,
    name: Callable[[Var], Axis],
    paths: Sequence[str],
    tasks: tuple[str, ...],
) -> Term:
    return Term(
        times=term.times,
        axes=tuple(freeze(d, name) for d in term.dims),
        tasks=tasks,
        reads=_held(term.inner, name),
        makes=_held(term.made, name),
        path=None if term.param is None else paths[term.param],
        line=line_of(term.where),
    )


def _held(dims: Iterable[Var], name: Callable[[Var], Axis]) -> tuple[str, ...]:
    found = (leaf.name for d in dims for leaf in leaves(freeze(d, name)))
    return tuple(dict.fromkeys(found))


def _check_names(params: Any) -> None:
    found: dict[str, Any] = {}
    for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]:
        other = found.setdefault(path_name(path), path)
        if other != path:
            both = " and ".join(map(jax.tree_util.keystr, (other, path)))
            raise TraceError(
                f"two parameters are called {path_name(path)!r}: {both}; let no key "
                "have a slash"
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
    with calling(inputs):
        return jax.make_jaxpr(apply, return_shape=True)(params, *inputs)


def _tasks(
    out: Any, frame: Frame, shapes: Mapping[str, Any], like: Any, inputs: Sequence[Any]
) -> list[str | None]:
    """Per leaf of the result its task, or None if it is state."""
    sizes = {name: s.shape for name, s in shapes.items()}
    dims = [frame.values[v].dims for v in frame.jaxpr.invars]
    params = dict(zip(sizes, dims, strict=False))
    given = jax.tree_util.tree_flatten_with_path(inputs)[0]
    has = examples_axis(
        [
            d
            for d, (path, _) in zip(dims[len(sizes) :], given, strict=True)
            if mirrored(path_name(path[1:]), tuple(v.size for v in d), sizes) is None
        ]
    )
    made = [value.dims for value in frame.outs]
    found = states(out, like, sizes, lambda i, name: has(made[i], [params[name]]))
    several = isinstance(out, dict) and all(isinstance(task, str) for task in out)
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(out)[0]]
    # A task's name may have a slash.
    tasks = [path[0].key if several else OUTPUT for path in paths]
    return [t if n is None else None for t, n in zip(tasks, found, strict=True)]


def _bit(tasks: tuple[str, ...], task: str | None) -> int:
    return 0 if task is None else 1 << tasks.index(task)


def _named(tasks: tuple[str, ...], bits: int) -> tuple[str, ...]:
    return tuple(task for i, task in enumerate(tasks) if bits >> i & 1)


def _pin_matching(
    walker: Walker, axes: Mapping[str, tuple[Var, ...]], pin: Iterable[str]
) -> None:
    """Pin what the caller named: paths, axes or groups, as patterns."""
    for pattern in several(pin):
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


def _groups(
    walker: Walker,
    names: Mapping[Var, str],
    axes: Mapping[str, tuple[Var, ...]],
    frozen: Mapping[str, tuple[Axis, ...]],
    reach: Mapping[str, tuple[str, ...]],
    tasks: Sequence[str],
) -> Iterable[Group]:
    members: dict[str, list[Member]] = {name: [] for name in names.values()}
    paths = list(frozen)
    used = {paths[i]: n for i, n in walker.used.items()}
    for path in sorted(frozen, key=lambda path: used.get(path, len(used))):
        for i, axis in enumerate(frozen[path]):
            for name in dict.fromkeys(leaf.name for leaf in leaves(axis)):
                members[name].append(Member(path, i, axis))
    ties = ties_of(walker.solver.links, names, _places(members, axes))
    lines = functools.cache(line_of)
    notes, ordered = _notes(walker), told.ordered(walker)
    for var, name in names.items():
        found = {task for m in members[name] for task in reach[m.path]}
        tied = ties[name]
        yield Group(
            name=name,
            size=var.size,
            members=tuple(
                m._replace(tie=proof.said(tied[m.place], lines))
                if m.place in tied
                else m
                for m in members[name]
            ),
            pinned=said(var.pins[0]) if var.pins else None,
            tasks=tuple(task for task in tasks if task in found),
            notes=tuple(dict.fromkeys(notes.get(var, ()))),
            ordered=ordered.get(var),
        )


def _places(
    members: Mapping[str, Sequence[Member]], axes: Mapping[str, tuple[Var, ...]]
) -> dict[str, dict[str, Var]]:
    """Per group, the variables of its places; the one that names it comes first."""
    out = {}
    for name, some in members.items():
        root = name.rpartition(":")[0]
        first = sorted(some, key=lambda m: not (m.path == root and m.place in name))
        out[name] = {m.place: axes[m.path][m.axis] for m in first}
    return out


def _notes(walker: Walker) -> dict[Var, list[str]]:
    notes: dict[Var, list[str]] = {}
    for dims, where in walker.means:
        line = f"a mean runs over these channels at {line_of(where)}"
        for var in {v for d in dims for v in leaf_vars(d)}:
            notes.setdefault(var, []).append(line)
    for var, line in zeros.notes(walker):
        notes.setdefault(var, []).append(line)
    return notes
