"""The state of a training run, cut along with its parameters.

Optimisers, averages, masks and train states hold pytrees that mirror the parameters:
the same paths with the same shapes, whole or of one collection (`params` of a Linen
model). These are found by that structure and cut; what is left, counts and schedules
and keys, stays as it is.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cutjax.dims import Keep, count
from cutjax.errors import MismatchError
from cutjax.graph import Graph
from cutjax.members import pruned
from cutjax.mirror import named_leaves, path_name
from cutjax.shrink import narrowed, needed

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


def cut_state(
    state: Any,
    graph: Graph,
    keep: Keep,
    tasks: Sequence[str] | str | None = None,
) -> Any:
    """The state of a run over the full parameters, for the cut ones.

    Momenta, averages, accumulated gradients, masks: every subtree with the paths and
    shapes of the parameters, or of one of their collections, is cut as `cut` cuts
    parameters, whatever it stands in: chains, `optax.masked`, `multi_transform`,
    `MultiSteps`, injected hyperparameters, a Flax `TrainState`, the state of an
    `nnx.Optimizer`. A subtree may leave parameters out (None, `optax.MaskedNode`; with
    NNX, a `mean` and `var`), and hold several of each: along leading axes, as L-BFGS
    does, or in a node below its path, of its shape or, as SM3 does, in a list of one
    vector per axis. All else is left alone.

    Args:
        state: any pytree.
        graph: of the full function.
        keep: the channels to keep.
        tasks: as for `cut`: what parameters that none of these needs had, is gone.

    Returns:
        A state for the parameters that `cut(apply, params, graph, keep, tasks)` gives;
        the same arrays where nothing is lost.

    Raises:
        KeepError: the keep or the tasks do not fit the graph.
        MismatchError: a subtree has the parameters' paths, but shapes that do not tell
            what to cut (factored moments); all parameters lie in one vector; or the
            state holds arrays, and none of them is of a parameter.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax, cutjax as cj
        >>> w = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))}
        >>> graph = cj.trace(lambda w, x: x @ w["a"] @ w["b"], w, jnp.ones((1, 2)))
        >>> state = optax.adam(1e-3).init(w)
        >>> small = cut_state(state, graph, {"a:1": np.array([True, False, True])})
        >>> small[0].mu["a"].shape, small[0].count.shape
        ((2, 2), ())
    """
    chosen = graph.check_tasks(tasks)
    graph.check_keep(keep, () if tasks is None else chosen)
    absent = frozenset(graph.shapes) - needed(graph, tasks)
    work = Work(graph, keep, absent, _templates(graph))
    small, hit = _walk("", state, work)
    if not hit:
        _check_empty(state, work)
    return small


def _templates(graph: Graph) -> tuple[Template, ...]:
    """All parameters, then each entry at their top that is no leaf itself."""
    tops = dict.fromkeys(n.partition("/")[0] + "/" for n in graph.shapes if "/" in n)
    shapes = {name: tuple(s.shape) for name, s in graph.shapes.items()}

    def below(top: str) -> dict[str, Shape]:
        return {n.removeprefix(top): s for n, s in shapes.items() if n.startswith(top)}

    def template(top: str) -> Template:
        end = _end(below(top))
        bare = {name.removesuffix(end): s for name, s in below(top).items()}
        return Template(top, bare, end)

    return tuple(map(template, ("", *tops)))


def _end(names: Collection[str]) -> str:
    """What NNX variables add to the paths of arrays, if all of these have it."""
    for end in ("/value", "/raw_value"):
        if names and all(name.endswith(end) for name in names):
            return end
    return ""


def _walk(name: str, node: Any, work: Work) -> tuple[Any, bool]:
    """The node, cut; and whether anything in it mirrors parameters."""
    part = _part(name, node)
    template = _match(part, work)
    if template is not None:
        return _cut(part, template, work), True
    found, tree = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda inner: inner is not node
    )
    if jax.tree_util.treedef_is_leaf(tree):
        _check_vector(part, work)
        return node, False
    bundle = _bundle(part, work)
    if bundle is not None and all(map(_by_axis, *_bundled(*bundle))):
        return _cut(*bundle, work), True
    inner = [_walk(_under(name, path_name(path)), leaf, work) for path, leaf in found]
    hit = any(mirrors for _, mirrors in inner)
    if not hit and bundle is not None:
        return _cut(*bundle, work), True
    if not hit:
        _check_near(part, work)
    return jax.tree.unflatten(tree, [leaf for leaf, _ in inner]), hit


def _under(name: str, inner: str) -> str:
    return f"{name}/{inner}" if name and inner else name or inner


def _part(name: str, node: Any) -> Part:
    def out(inner: Any) -> bool:
        return inner is None or isinstance(inner, optax.MaskedNode)

    filled = jax.tree.map(lambda v: Hole(v) if out(v) else v, node, is_leaf=out)
    leaves = named_leaves(filled)
    end = _end([n for n, leaf in leaves.items() if not isinstance(leaf, Hole)])
    bare = {n.removesuffix(end): leaf for n, leaf in leaves.items()}
    return Part(name, filled, bare, end)


def _match(part: Part, work: Work) -> Template | None:
    """The template that a node has the paths of; its shapes are looked at later."""
    if not part.shapes():
        return None
    fits = [t for t in work.templates if _has_paths(part, t) and _firm(part, t)]
    called = [t for t in fits if _called(part, t)]
    fits = called or [t for t in fits if _leading(part, t) is not None] or fits
    for other in fits[1:]:
        _check_alike(part, fits[0], other, work)
    return fits[0] if fits else None


def _called(part: Part, template: Template) -> bool:
    """The node is called like the collection."""
    return bool(template.top) and f"/{part.name}/".endswith(f"/{template.top}")


def _bundle(part: Part, work: Work) -> tuple[Part, Template] | None:
    """A node that has nodes where a template has arrays, these as leaves."""
    fits = []
    for template in work.templates:
        known = template.shapes

        def here(path: Any, inner: Any, known: dict[str, Shape] = known) -> bool:
            whole = jax.tree.leaves(inner)
            return path_name(path) in known and not (whole and whole[0] is inner)

        filled = jax.tree_util.tree_map_with_path(
            lambda path, v, here=here: Several(v) if here(path, v) else v,
            part.filled,
            is_leaf=here,
            is_leaf_takes_path=True,
        )
        bundle = Part(part.name, filled, named_leaves(filled), "")
        held = any(isinstance(leaf, Several) for leaf in bundle.leaves.values())
        if held and _has_paths(bundle, template) and _firm(bundle, template):
            fits.append((bundle, template))
    fits = [fit for fit in fits if _called(*fit)] or fits
    for _, other in fits[1:]:
        _check_alike(fits[0][0], fits[0][1], other, work)
    return fits[0] if fits else None


def _bundled(part: Part, template: Template) -> tuple[list[Any], list[Shape]]:
    """What stands for several arrays, and the shapes of their parameters."""
    found = {k: v.value for k, v in part.leaves.items() if isinstance(v, Several)}
    return [*found.values()], [template.shapes[name] for name in found]


def _by_axis(value: Any, want: Shape) -> bool:
    """Whether these arrays are one per axis of a parameter, in order."""
    shapes = {k: getattr(v, "shape", None) for k, v in named_leaves(value).items()}
    return shapes == {str(axis): (size,) for axis, size in enumerate(want)}


def _firm(part: Part, template: Template) -> bool:
    """One array of a short path may be called like a parameter by chance."""
    if not template.top or len(template.shapes) > 1:
        return True
    return _called(part, template) and all("/" in name for name in template.shapes)


def _has_paths(part: Part, template: Template) -> bool:
    known, covered = template.shapes, set()
    for name, leaf in part.leaves.items():
        if isinstance(leaf, Hole):
            covered |= {n for n in known if not name or f"{n}/".startswith(f"{name}/")}
        elif name not in known:
            return False
        covered.add(name)
    if "" in known:  # the parameters are one array: paths say nothing
        return part.shapes() == known and known[""] != ()
    # A mask may also be missing where nothing is pruned.
    return part.name.rpartition("/")[2] == "masks" or covered >= _trained(known)


def _trained(known: Collection[str]) -> set[str]:
    """The paths that no optimiser lacks: NNX has statistics beside what is trained."""
    ends = ("mean", "var")
    return {n for n in known if n.rpartition("/")[2] not in ends} or set(known)


def _leading(part: Part, template: Template) -> Shape | None:
    """The axes that all arrays have before their parameters'; None where they differ.

    A number kept per parameter fits in with any; so does one in an axis of its own,
    which Adafactor has in place of what it does not factor.
    """
    found = set()
    for name, shape in part.shapes().items():
        want = template.shapes[name]
        cutoff = len(shape) - len(want)
        fits = cutoff >= 0 and shape[cutoff:] == want
        if math.prod(shape) != 1:
            found.add(shape[:cutoff] if fits else None)
    return found.pop() if len(found) == 1 else None if found else ()


def _cut(part: Part, template: Template, work: Work) -> Any:
    leading = _leading(part, template)
    if leading is None:
        _check_shapes(part, template, work)

    def narrow(path: tuple[Any, ...], leaf: Any) -> Any:
        full = template.path(path_name(path).removesuffix(part.end))
        if isinstance(leaf, Several):
            return _each_cut(leaf, _under(part.name, path_name(path)), full, work)
        shape, first = getattr(leaf, "shape", ()), len(leading or ())
        if isinstance(leaf, Hole) or shape[first:] != work.graph.shapes[full].shape:
            return leaf
        return narrowed(leaf, work.graph.axes[full], work.keep, first=first)

    def gone(name: str, _: Any) -> bool:
        full = _under(template.top.rstrip("/"), name.removesuffix(part.end))
        under = [n for n in work.graph.shapes if f"{n}/".startswith(f"{full}/")]
        return bool(under) and work.absent.issuperset(under)

    small = jax.tree_util.tree_map_with_path(narrow, part.filled)
    return jax.tree.map(
        lambda leaf: leaf.value if isinstance(leaf, Hole | Several) else leaf,
        pruned(small, gone),
    )


def _each_cut(held: Several, name: str, full: str, work: Work) -> Several:
    """Arrays of one parameter: each like it or, one per axis, along its own."""
    axes, want = work.graph.axes[full], tuple(work.graph.shapes[full].shape)
    by_axis = _by_axis(held.value, want)

    def narrow(path: tuple[Any, ...], leaf: Any) -> Any:
        if isinstance(leaf, Hole):
            return leaf.value
        if full in work.absent:
            return leaf
        if by_axis:
            return narrowed(leaf, (axes[int(path_name(path))],), work.keep)
        shape = tuple(getattr(leaf, "shape", ()))
        _check_shape(_under(name, path_name(path)), shape, full, work)
        return narrowed(leaf, axes, work.keep) if shape == want else leaf

    return Several(jax.tree_util.tree_map_with_path(narrow, held.value))


def _check_shapes(part: Part, template: Template, work: Work) -> None:
    for name, shape in part.shapes().items():
        _check_shape(_under(part.name, name), shape, template.path(name), work)


def _check_shape(name: str, shape: Shape, full: str, work: Work) -> None:
    want = tuple(work.graph.shapes[full].shape)
    if math.prod(shape) != 1 and shape != want and work.loses(full):
        raise MismatchError(
            f"{name!r} is {list(shape)}, but the parameter {full!r} that it goes with "
            f"is {list(want)}: such a leaf cannot be cut along; make it again from the "
            "cut parameters (`optimizer.init`)"
        )


def _check_alike(part: Part, one: Template, other: Template, work: Work) -> None:
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


def _check_vector(part: Part, work: Work) -> None:
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


def _check_near(part: Part, work: Work) -> None:
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


def _check_empty(state: Any, work: Work) -> None:
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
