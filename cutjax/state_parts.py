"""Parts of a training run's state that mirror parameters, and what cannot be cut."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cutjax.dims import Keep, count
from cutjax.errors import MismatchError
from cutjax.graph import Graph
from cutjax.mirror import named_leaves

Shape = tuple[int, ...]


class Template(NamedTuple):
    """What a part of a state may mirror: the parameters, or one collection of them.

    Attributes:
        top: path of the collection, with a slash; "" for all parameters.
        shapes: by path within it.
        end: what all paths end with beyond that, as those of NNX variables do.
    """

    top: str
    shapes: dict[str, Shape]
    end: str = ""

    def path(self, name: str) -> str:
        """Of a parameter in the graph."""
        return self.top + name + self.end


class Work(NamedTuple):
    """What a state is cut by. `absent`: parameters that go whole."""

    graph: Graph
    keep: Keep
    absent: frozenset[str]
    templates: tuple[Template, ...]

    def loses(self, path: str) -> bool:
        """Whether anything of a parameter goes."""
        widths = {name: int(np.sum(mask)) for name, mask in self.keep.items()}
        left = tuple(count(axis, widths) for axis in self.graph.axes[path])
        return path in self.absent or left != self.graph.shapes[path].shape


@dataclass(frozen=True, eq=False)
class Hole:
    """Stands, as a leaf, for what leaves parameters out: None, `optax.MaskedNode`."""

    value: Any


@dataclass(frozen=True, eq=False)
class Several:
    """Stands, as a leaf, for the arrays that SM3 and others keep of one parameter."""

    value: Any


class Part(NamedTuple):
    """A node of the state: its path, itself with holes as leaves, these by path.

    `end` is what the paths of all arrays end with beyond that.
    """

    name: str
    filled: Any
    leaves: dict[str, Any]
    end: str

    def shapes(self) -> dict[str, Shape]:
        """Of the arrays in it, by path within it."""
        return {
            name: tuple(getattr(leaf, "shape", ()))
            for name, leaf in self.leaves.items()
            if not isinstance(leaf, Hole)
        }


def under(name: str, inner: str) -> str:
    """A path below another; either may be empty."""
    return f"{name}/{inner}" if name and inner else name or inner


def check_shape(name: str, shape: Shape, full: str, work: Work) -> None:
    """An array that is cut has the shape of its parameter, or one element."""
    want = tuple(work.graph.shapes[full].shape)
    if math.prod(shape) != 1 and shape != want and work.loses(full):
        raise MismatchError(
            f"{name!r} is {list(shape)}, but the parameter {full!r} that it goes with "
            f"is {list(want)}: such a leaf cannot be cut along; make it again from the "
            "cut parameters (`optimizer.init`)"
        )


def check_alike(part: Part, one: Template, other: Template, work: Work) -> None:
    """Two templates of the same paths and shapes must be cut the same way."""
    for name in part.shapes():
        a, b = one.path(name), other.path(name)
        same = work.graph.axes[a] == work.graph.axes[b]
        if not same or (a in work.absent) != (b in work.absent):
            raise MismatchError(
                f"{part.name!r} mirrors {one.top.rstrip('/')!r} as well as "
                f"{other.top.rstrip('/')!r}, which are cut differently; cut it under "
                f"its name: cut_state({{{one.top.rstrip('/')!r}: ...}}, graph, keep)"
            )


def check_vector(part: Part, work: Work) -> None:
    """All parameters in one vector tell nothing of channels."""
    (shape,) = part.shapes().values() or ((),)
    for template in work.templates:
        full = {template.path(name): s for name, s in template.shapes.items()}
        total = sum(int(np.prod(s)) for s in full.values())
        if len(full) > 1 and shape == (total,) and any(map(work.loses, full)):
            raise MismatchError(
                f"{part.name!r} holds {total} numbers, as many as all parameters, in "
                "one vector (`optax.flatten`?): it cannot be cut along; make it again "
                "from the cut parameters (`optimizer.init`)"
            )


def check_near(part: Part, work: Work) -> None:
    """The state of another model has most of the paths, and some that are wrong."""
    for template in work.templates:
        known = template.shapes
        shared = set(known) & set(part.leaves)
        if len(shared) > max(1, len(known) / 2):
            wrong = [f"{n!r} is missing" for n in known if n not in part.leaves]
            wrong += [f"{n!r} is none" for n in part.leaves if n not in known]
            raise MismatchError(
                f"{part.name!r} is nearly like the parameters, but {wrong[0]}: this "
                "is the state of another model"
            )


def check_empty(state: Any, work: Work) -> None:
    """A state in which nothing mirrors parameters holds no arrays of them."""

    def of_parameters(leaf: Any) -> bool:
        real = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        return jnp.ndim(leaf) > 0 and (real or jnp.result_type(leaf) == jnp.bool_)

    found = [n for n, leaf in named_leaves(state).items() if of_parameters(leaf)]
    if found and any(map(work.loses, work.graph.shapes)):
        raise MismatchError(
            f"nothing in this state is like the parameters: it holds {found[0]!r}, the "
            f"graph {next(iter(work.graph.shapes))!r}; give a state of the parameters "
            "that were traced: cut_state(optimizer.init(params), graph, keep)"
        )
