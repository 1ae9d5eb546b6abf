"""Features of parent and child: what corresponding kernels read.

The channel groups say which tensors correspond: channel i of a group of the child is
channel keep[i] of the parent. So the child's operand of a kernel is to be the parent's
operand of the same kernel, without the channels that went.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cutjax.dims import Axis, Fixed, Leaf, kept as positions
from cutjax.errors import KeepError, suggest
from cutjax.given import several
from cutjax.graph import Graph
from cutjax.metrics import named
from cutjax.readers import channel_axes, is_linear
from cutjax.resize import Hook, Kept, Reader, Run, freeze
from cutjax.shrink import needed, rewrite
from cutjax.unify import leaf_vars

FEATURE = "feature:"


class Features(NamedTuple):
    """The parent's and the child's function, each answering its features too.

    `parent(params, *inputs)` and `child(small_params, *inputs)` return what the
    function returned, the outputs joined by `feature:<path of the kernel>`. These have
    the same shapes on both sides.
    """

    parent: Callable[..., Any]
    child: Callable[..., Any]


def features(
    apply: Callable[..., Any],
    graph: Graph,
    keep: Mapping[str, np.ndarray],
    *,
    tasks: Sequence[str] | str | None = None,
    at: Iterable[str] | str | None = None,
) -> Features:
    """What kernels read, beside the outputs, at full size and cut.

    Args:
        apply: the full function; `(params, x) -> (outputs, updates)` in training works
            as well.
        graph: its graph.
        keep: the channels that the child keeps.
        tasks: those that the child answers; features that serve none are left out.
        at: names of groups, or paths of kernels that read them; all, if not given. What
            several kernels read is taken once, where it is read first.

    Returns:
        The two functions. Nothing is taken from within loops, nor where a group keeps
        no channel.

    Raises:
        KeepError: when called, that `at` names what no kernel reads.

    Example:
        >>> import cutjax as cj
        >>> apply = lambda w, x: jnp.tanh(x @ w["a"]) @ w["b"]
        >>> w = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))}
        >>> x = jnp.ones((4, 2))
        >>> graph = cj.trace(apply, w, x)
        >>> keep = {"a:1": np.array([True, False, True])}
        >>> seen = features(apply, graph, keep)
        >>> {name: v.shape for name, v in seen.parent(w, x).items()}
        {'output': (4, 1), 'feature:b': (4, 2)}

    Reference:
        Romero et al., FitNets: Hints for Thin Deep Nets, 2015, eq. 3; here no regressor
        is needed, because channels correspond.
    """
    chosen = frozenset(graph.check_tasks(tasks))
    wanted = None if at is None else frozenset(several(at))
    used = needed(graph, tasks)

    def side(cut: Mapping[str, np.ndarray]) -> Callable[..., Any]:
        def answering(params: Any, *inputs: Any) -> Any:
            found: dict[str, Array] = {}
            hits: set[str] = set()
            take = _taker(graph, keep, chosen, used, wanted)
            hook = _noting(found, hits, take)
            run = rewrite(apply, graph, cut, tasks=tasks, hook=hook, flat=True)
            result = run(params, *inputs)
            _check(wanted, hits, graph)
            return _joined(result, {f"{FEATURE}{k}": v for k, v in found.items()})

        return answering

    return Features(side({}), side(keep))


def mismatch(
    child: Float[Array | np.ndarray, "n *rest"],
    parent: Float[Array | np.ndarray, "n *rest"],
) -> Float[Array, ""]:
    """Squared error over the parent's variance between examples.

    0 where the child makes what the parent makes, 1 where it makes the parent's mean:
    one weight serves features of any size. What does not vary, to the rounding of its
    size, costs nothing.

    Args:
        child: a feature of the child, one row per example.
        parent: the same feature of the parent.

    Returns:
        A share.
    """
    parent = jnp.asarray(parent, jnp.float32)
    error = jnp.mean((jnp.asarray(child, jnp.float32) - parent) ** 2)
    spread = jnp.mean((parent - parent.mean(0)) ** 2)
    varies = spread > 1e-10 * jnp.mean(parent**2)
    return jnp.where(varies, error / jnp.where(varies, spread, 1.0), 0.0)


class _Take(NamedTuple):
    """A feature: its name, the groups it shows, and which positions of each axis."""

    path: str
    groups: frozenset[str]
    masks: tuple[np.ndarray, ...]


def _taker(
    graph: Graph,
    keep: Mapping[str, np.ndarray],
    chosen: frozenset[str],
    used: frozenset[str],
    wanted: frozenset[str] | None,
) -> Callable[[Kept, Reader], _Take | None]:
    """What is to be taken at a reader, if anything."""
    paths = list(graph.shapes)
    serving = {g.name for g in graph.free if chosen & set(g.tasks)}

    def take(kept: Kept, reader: Reader) -> _Take | None:
        if not is_linear(reader):
            return None
        at = reader.site.at
        path = paths[reader.ins[1 - at].param]  # type: ignore[index]
        dims = reader.ins[at].dims
        axes = channel_axes(reader, at)
        read = {kept.name(v) or "" for a in axes for v in leaf_vars(dims[a])} & serving
        asked = wanted is None or path in wanted or bool(read & wanted)
        if path not in used or not read or not asked:
            return None
        label = _label(kept)
        masks = tuple(positions(freeze(d, label), keep) for d in dims)
        return _Take(path, frozenset(read), masks)

    return take


def _label(kept: Kept) -> Callable[[Any], Axis]:
    def label(var: Any) -> Axis:
        name = kept.name(var)
        return Fixed(var.size) if name is None else Leaf(name, var.size)

    return label


def _noting(
    found: dict[str, Array],
    hits: set[str],
    take: Callable[[Kept, Reader], _Take | None],
) -> Hook:
    """Notes operands of readers; those of the full function are narrowed."""
    noted: list[Any] = []

    def hook(kept: Kept, reader: Reader, run: Run, args: list[Any]) -> list[Any]:
        operand, feature = args[reader.site.at], take(kept, reader)
        if feature is not None:
            hits.update(feature.groups, [feature.path])
            # A kernel that is read twice shows what it reads first.
            known = any(operand is old for old in noted) or feature.path in found
            if not known and all(m.any() for m in feature.masks):
                found[feature.path] = _narrowed(operand, feature.masks)
                noted.append(operand)
        return run(args)

    return hook


def _narrowed(operand: Any, masks: Sequence[np.ndarray]) -> Any:
    for axis, mask in enumerate(masks):
        if operand.shape[axis] == mask.size and not mask.all():
            operand = jnp.take(operand, np.flatnonzero(mask), axis)
    return operand


def _check(wanted: frozenset[str] | None, hits: set[str], graph: Graph) -> None:
    for name in sorted(wanted or ()):
        if name not in hits:
            known = [*(g.name for g in graph.free), *graph.shapes]
            raise KeepError(
                f"features: no kernel outside of loops reads {name!r} for these tasks; "
                f"{suggest(name, known)}"
            )


def _joined(result: Any, found: Mapping[str, Array]) -> Any:
    if isinstance(result, tuple):
        return ({**named(result[0]), **found}, *result[1:])
    return {**named(result), **found}
