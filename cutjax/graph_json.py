"""A graph as plain JSON and back, so that a cut can run again without tracing.

Lists stand wherever order matters: the order of the parameters is that of the leaves.
Containers of the parameters are written down too (dict, list, tuple, None); of any
other node only its type is, and the reader must bring the tree.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cutjax.cost import Activation, Term
from cutjax.dims import Axis, Concat, Fixed, Leaf, Product
from cutjax.flow import Flow, Node
from cutjax.graph import Graph, Group, Member

Json = Any

_LEAF = "*"
_KEYS = ("threefry2x32", "rbg", "unsafe_rbg")


def graph_to_json(graph: Graph) -> Json:
    """All of a graph as JSON.

    Args:
        graph: from `trace`.

    Returns:
        Dicts, lists, strings and integers.
    """
    return {
        "tasks": list(graph.tasks),
        "inputs": list(graph.inputs),
        "on_unknown": graph.on_unknown,
        "tree": tree_to_json(graph.treedef),
        "params": [
            {
                "path": path,
                "array": struct_to_json(graph.shapes[path]),
                "axes": [_axis_to_json(axis) for axis in axes],
                "reach": list(graph.reach[path]),
            }
            for path, axes in graph.axes.items()
        ],
        "groups": [
            {
                "name": group.name,
                "size": int(group.size),
                "members": [[m.path, m.axis, m.tie] for m in group.members],
                "pinned": group.pinned,
                "tasks": list(group.tasks),
                "notes": list(group.notes),
                "ordered": group.ordered,
            }
            for group in graph.groups
        ],
        "terms": [
            {
                **t._asdict(),
                "times": int(t.times),
                "axes": [_axis_to_json(a) for a in t.axes],
            }
            for t in graph.terms
        ],
        "activations": _activations_to_json(graph.activations),
        "flow": _flow_to_json(graph.flow),
    }


def _activations_to_json(arrays: tuple[Activation, ...] | None) -> Json:
    if arrays is None:
        return None
    return [
        [int(a.bytes), [_axis_to_json(axis) for axis in a.axes], list(a.tasks)]
        for a in arrays
    ]


def _activations_from_json(value: Json) -> tuple[Activation, ...] | None:
    if value is None:
        return None
    return tuple(
        Activation(n, tuple(map(_axis_from_json, axes)), tuple(tasks))
        for n, axes, tasks in value
    )


def _flow_to_json(flow: Flow | None) -> Json:
    if flow is None:
        return None
    nodes = [
        [[_axis_to_json(axis) for axis in node.axes], [list(n) for n in node.needs]]
        for node in flow.nodes
    ]
    return [nodes, {task: [list(e) for e in ends] for task, ends in flow.ends.items()}]


def _flow_from_json(value: Json) -> Flow | None:
    if value is None:
        return None
    nodes, ends = value
    return Flow(
        tuple(
            Node(tuple(map(_axis_from_json, axes)), tuple(map(tuple, needs)))
            for axes, needs in nodes
        ),
        {task: tuple(map(tuple, some)) for task, some in ends.items()},
    )


def graph_from_json(value: Json, treedef: Any = None) -> Graph:
    """The graph that `graph_to_json` wrote.

    Args:
        value: what it wrote.
        treedef: the structure of the parameters, where `value` cannot hold it.

    Returns:
        A graph equal to the one written; its `treedef` is None where it is not known.

    Raises:
        KeyError, TypeError, ValueError: `value` is damaged.
    """
    params = {p["path"]: p for p in value["params"]}
    if treedef is None and custom_node(value["tree"]) is None:
        treedef = tree_from_json(value["tree"])
    axes = {n: tuple(_axis_from_json(a) for a in p["axes"]) for n, p in params.items()}
    groups = [
        Group(
            name=g["name"],
            size=g["size"],
            members=tuple(
                Member(n, i, axes[n][i], *tie) for n, i, *tie in g["members"]
            ),
            pinned=g["pinned"],
            tasks=tuple(g["tasks"]),
            notes=tuple(g["notes"]),
            ordered=g.get("ordered"),
        )
        for g in value["groups"]
    ]
    return Graph(
        groups=tuple(groups),
        tasks=tuple(value["tasks"]),
        axes=axes,
        shapes={n: struct_from_json(p["array"]) for n, p in params.items()},
        treedef=treedef,
        reach={n: tuple(p["reach"]) for n, p in params.items()},
        terms=tuple(map(_term_from_json, value["terms"])),
        inputs=tuple(value["inputs"]),
        on_unknown=value["on_unknown"],
        # Stored since groups may go whole and activations are counted.
        activations=_activations_from_json(value.get("activations")),
        flow=_flow_from_json(value.get("flow")),
    )


def _term_from_json(value: Json) -> Term:
    # Format 1 knew nothing of readers.
    known = (
        dict(zip(Term._fields, value, strict=False))
        if isinstance(value, list)
        else value
    )
    lists = {k: tuple(v) for k, v in known.items() if isinstance(v, list)}
    axes = tuple(map(_axis_from_json, known["axes"]))
    return Term(**{**known, **lists, "axes": axes})


def _axis_to_json(axis: Axis) -> Json:
    match axis:
        case Leaf(name, size):
            return ["group", name, int(size)]
        case Fixed(size, reason):
            return ["fixed", int(size), reason]
        case Product(parts):
            return ["product", *map(_axis_to_json, parts)]
        case Concat(parts):
            return ["concat", *map(_axis_to_json, parts)]


def _axis_from_json(value: Json) -> Axis:
    match value:
        case ["group", str(name), int(size)]:
            return Leaf(name, size)
        case ["fixed", int(size), str(reason)]:
            return Fixed(size, reason)
        case ["product", *parts]:
            return Product(tuple(map(_axis_from_json, parts)))
        case ["concat", *parts]:
            return Concat(tuple(map(_axis_from_json, parts)))
    raise ValueError(f"not an axis: {value!r}")


def tree_to_json(treedef: Any) -> Json:
    """The containers of a pytree.

    Example:
        >>> tree_to_json(jax.tree.structure({"a": (1, None)}))
        ['dict', ['a', ['tuple', '*', None]]]
    """
    # Empty containers have one node too: `treedef_is_leaf` takes them for leaves.
    if treedef.num_nodes == treedef.num_leaves == 1:
        return _LEAF
    kind, data = treedef.node_data() or (type(None), ())
    parts = [tree_to_json(child) for child in treedef.children()]
    if kind is type(None):
        return None
    if kind is dict and all(type(key) in (str, int) for key in data):
        return ["dict", *([key, part] for key, part in zip(data, parts, strict=True))]
    if kind is list or kind is tuple:
        return [kind.__name__, *parts]
    return ["custom", f"{kind.__module__}.{kind.__qualname__}"]


def tree_from_json(value: Json) -> Any:
    """The structure that `tree_to_json` wrote.

    Raises:
        ValueError: it holds a node that JSON cannot rebuild, or is damaged.
    """

    def build(node: Json) -> Any:
        match node:
            case None | "*":
                return node
            case ["dict", *items]:
                return {key: build(part) for key, part in items}
            case ["list", *parts]:
                return [build(part) for part in parts]
            case ["tuple", *parts]:
                return tuple(build(part) for part in parts)
        raise ValueError(f"not a container that JSON can rebuild: {node!r}")

    return jax.tree.structure(build(value))


def custom_node(value: Json) -> str | None:
    """The type of the first node that JSON cannot rebuild, or None."""
    match value:
        case ["custom", str(kind)]:
            return kind
        case ["dict", *items]:
            parts = [part for _, part in items]
        case ["list" | "tuple", *parts]:
            pass
        case _:
            return None
    return next((kind for part in parts if (kind := custom_node(part))), None)


def struct_to_json(leaf: Any) -> Json:
    """A shape and dtype as `[dtype, *shape]`."""
    return [str(leaf.dtype), *map(int, leaf.shape)]


def struct_from_json(value: Json) -> jax.ShapeDtypeStruct:
    """The shape and dtype that `struct_to_json` wrote.

    Raises:
        TypeError, ValueError: the dtype is unknown here, or `value` is damaged.
    """
    dtype, *shape = value
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"not a shape: {shape!r}")
    impl = key_impl(dtype)
    if impl is None:
        return jax.ShapeDtypeStruct(tuple(shape), np.dtype(jnp.dtype(dtype)))
    key = jax.eval_shape(lambda: jax.random.key(0, impl=impl))
    return jax.ShapeDtypeStruct(tuple(shape), key.dtype)


def inputs_to_json(inputs: Any) -> Json:
    """A tuple of arrays, shapes or containers of them, as structure and shapes.

    Raises:
        ValueError: they hold a container that JSON cannot rebuild.
    """
    tree = tree_to_json(jax.tree.structure(inputs))
    kind = custom_node(tree)
    if kind is not None:
        raise ValueError(f"they hold a {kind}")
    return {
        "tree": tree,
        "arrays": [
            struct_to_json(leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf))
            for leaf in jax.tree.leaves(inputs)
        ],
    }


def inputs_from_json(value: Json) -> Any:
    """The shapes that `inputs_to_json` wrote."""
    return jax.tree.unflatten(
        tree_from_json(value["tree"]), map(struct_from_json, value["arrays"])
    )


def struct_from_text(text: str) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an entry of `Graph.inputs`.

    Example:
        >>> struct_from_text("float32[2, 8]").shape
        (2, 8)
    """
    dtype, _, shape = text.partition("[")
    return struct_from_json([dtype, *json.loads(f"[{shape}")])


def key_impl(dtype: Any) -> str | None:
    """The generator of random keys of this dtype; None if these are no keys."""
    if not str(dtype).startswith("key<"):
        return None
    for impl in _KEYS:
        key = jax.eval_shape(lambda impl=impl: jax.random.key(0, impl=impl))
        if str(key.dtype) == str(dtype):
            return impl
    raise ValueError(f"random keys of an unknown generator: {dtype}")
