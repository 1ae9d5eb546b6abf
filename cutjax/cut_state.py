"""The state of a training run, cut along with its parameters.

Optimisers, averages, masks and train states hold pytrees that mirror the parameters:
the same paths with the same shapes, whole or of one collection (`params` of a Linen
model). These are found by that structure and cut; what is left, counts and schedules
and keys, stays as it is.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import jax
import optax

from cutjax.dims import Keep
from cutjax.graph import Graph
from cutjax.members import pruned
from cutjax.mirror import named_leaves, path_name
from cutjax.shrink import narrowed, needed
from cutjax.state_parts import (
    Hole,
    Part,
    Several,
    Shape,
    Template,
    Work,
    check_alike,
    check_empty,
    check_near,
    check_shape,
    check_vector,
    under,
)


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
        check_empty(state, work)
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
        check_vector(part, work)
        return node, False
    bundle = _bundle(part, work)
    if bundle is not None and all(map(_by_axis, *_bundled(*bundle))):
        return _cut(*bundle, work), True
    inner = [_walk(under(name, path_name(path)), leaf, work) for path, leaf in found]
    hit = any(mirrors for _, mirrors in inner)
    if not hit and bundle is not None:
        return _cut(*bundle, work), True
    if not hit:
        check_near(part, work)
    return jax.tree.unflatten(tree, [leaf for leaf, _ in inner]), hit


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
        check_alike(part, fits[0], other, work)
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
        check_alike(fits[0][0], fits[0][1], other, work)
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
            return _each_cut(leaf, under(part.name, path_name(path)), full, work)
        shape, first = getattr(leaf, "shape", ()), len(leading or ())
        if isinstance(leaf, Hole) or shape[first:] != work.graph.shapes[full].shape:
            return leaf
        return narrowed(leaf, work.graph.axes[full], work.keep, first=first)

    def gone(name: str, _: Any) -> bool:
        full = under(template.top.rstrip("/"), name.removesuffix(part.end))
        inside = [n for n in work.graph.shapes if f"{n}/".startswith(f"{full}/")]
        return bool(inside) and work.absent.issuperset(inside)

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
        check_shape(under(name, path_name(path)), shape, full, work)
        return narrowed(leaf, axes, work.keep) if shape == want else leaf

    return Several(jax.tree_util.tree_map_with_path(narrow, held.value))


def _check_shapes(part: Part, template: Template, work: Work) -> None:
    for name, shape in part.shapes().items():
        check_shape(under(part.name, name), shape, template.path(name), work)
