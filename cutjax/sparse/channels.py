"""Channels as masks: a keep that is traced; training that drops and grows channels.

A channel that is off must be neither read nor lost for good. Its gradient on the
reading side is activation times error: not zero only if the *writing* side (kernel,
bias, norm) is not zero. Its gradient on the writing side passes through the reading
side. With both at zero nothing would ever flow again, nor could anything tell which
channel to grow. So the reading side of a channel that is off is zero, and the writing
side keeps its weights, frozen. The function is that of the masked network all the same,
growing changes no output, and the first gradient reaches the reading side at once.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cutjax.dims import channels, fold
from cutjax.errors import KeepError
from cutjax.graph import Graph, Group
from cutjax.mirror import named_leaves
from cutjax.shrink import check_params
from cutjax.sparse.choose import best
from cutjax.sparse.grow import annealed, grown
from cutjax.sparse.optimizer import cadence, landing, mask_state
from cutjax.sparse.tree import Masks, apply_masks, map_masked, zeroed

Arrays: TypeAlias = Mapping[str, Any]
"""bool[n] per group, which may be traced: a keep inside of jit."""

UpdateKeep: TypeAlias = Callable[..., dict[str, Any]]
"""`update_keep(step, key, params, grads, keep) -> keep`, pure and jit-able."""


def channel_masks(graph: Graph, keep: Arrays) -> Masks:
    """Masks over all members of the channels: what `cj.mask` zeroes, traceable.

    Args:
        graph: the graph.
        keep: bool[n] per group, maybe traced; groups not named are whole.

    Returns:
        A pytree of the parameters' structure, None where a parameter loses nothing.

    Raises:
        KeepError: an unknown or pinned group, or a vector of the wrong length.
    """
    _check(graph, keep)
    return _masks(graph, keep, lambda path, axis: set(keep))


def reading_masks(graph: Graph, keep: Arrays) -> Masks:
    """Masks over the reading side of the channels only; see the module's text.

    Args:
        graph: the graph.
        keep: bool[n] per group, maybe traced; groups must be `growable`.

    Returns:
        A pytree of the parameters' structure, None where a parameter loses nothing.

    Raises:
        KeepError: a group whose reading side is not known, or a wrong vector.
    """
    _check(graph, keep)
    readers = growable(graph)
    for name in keep:
        if name not in readers:
            raise KeepError(
                f"{name!r} has no reading side of its own; growable(graph) lists those "
                "that have one"
            )
    return _masks(
        graph, keep, lambda p, axis: {n for n in keep if (p, axis) in readers[n]}
    )


def growable(graph: Graph) -> dict[str, frozenset[tuple[str, int]]]:
    """The groups that may be switched off by their reading side alone, and that side.

    Only kernels may read them, each along an axis of its own. Left out: channels that
    are multiplied with other activations (attention scores), averaged by a norm, summed
    plainly for a task that no kernel reads them for, read by a kernel that makes them
    as well, or held by a kernel of unknown role. A plain sum beside a kernel, for the
    same task, is not seen.

    Args:
        graph: the graph.

    Returns:
        Per group the places (path, axis) that read it.
    """
    known = {t.path for t in graph.terms}
    out = {}
    for group in graph.free:
        terms = [t for t in graph.terms if group.name in t.reads]
        paths = {t.path for t in terms}
        made = {t.path for t in graph.terms if group.name in t.makes}
        places = frozenset((m.path, m.axis) for m in group.members if m.path in paths)
        held = {m.path for m in group.members if len(graph.shapes[m.path].shape) > 1}
        certain = len(places) == len(paths) and not paths & (made | {None})
        # A branch that costs less than its sister has no term.
        served = {task for term in terms for task in term.tasks}
        certain &= held <= known and served >= {*group.tasks}
        if terms and certain and not group.notes:
            out[group.name] = places
    return out


def _check(graph: Graph, keep: Arrays) -> None:
    for name, mask in keep.items():
        group = graph[name]
        if group.pinned is not None:
            raise KeepError(f"{name!r} is pinned: {group.pinned}")
        if jnp.shape(mask) != (group.size,):
            raise KeepError(
                f"keep[{name!r}] has shape {list(jnp.shape(mask))}, not [{group.size}]"
            )


def _masks(graph: Graph, keep: Arrays, masked: Callable[[str, int], set[str]]) -> Masks:
    out = []
    for path, axes in graph.axes.items():
        shape, mask = graph.shapes[path].shape, None
        for i, axis in enumerate(axes):
            names = masked(path, i)
            if not any((channels(axis, name) >= 0).any() for name in names):
                continue

            def leaf(name: str, n: int, names: set[str] = names) -> Any:
                return jnp.asarray(keep[name]) if name in names else jnp.ones(n, bool)

            vector = fold(axis, leaf, lambda n: jnp.ones(n, bool))
            vector = vector.reshape([-1 if j == i else 1 for j in range(len(shape))])
            mask = vector if mask is None else mask & vector
        out.append(None if mask is None else jnp.broadcast_to(mask, shape))
    return jax.tree.unflatten(graph.treedef, out)


def channel_rigl(graph: Graph, stop: int, *, share: float = 0.3) -> UpdateKeep:
    """RigL for channels: drop those of the smallest kernels, grow by dense gradients.

    Dropped are the channels whose kernels, over all members, have the smallest norm,
    where a channel weighs as much as the product of its writing and its reading norm.
    Grown are those with the largest gradient norm on the reading side; one that is off
    and has none is not grown. Each group keeps as many channels as it had.

    Args:
        graph: the graph.
        stop: the step after which nothing is exchanged.
        share: exchanged at step 0; falls as a cosine.

    Returns:
        For `scheduled_channels`.

    Reference:
        Evci et al., Rigging the Lottery, ICML 2020, algorithm 1, here per channel.
    """
    readers = growable(graph)

    def update(
        step: Int[Array, ""], key: Any, params: Any, grads: Any, keep: Arrays
    ) -> dict[str, Any]:
        weights, slopes = named_leaves(params), named_leaves(grads)
        out = {}
        for name, now in keep.items():
            group, inside = graph[name], readers[name]
            number = now.sum()
            drop = annealed(step, stop, share, number)
            read = _norms(group, weights, lambda m, i=inside: m in i)
            write = _norms(group, weights, lambda m, i=inside: m not in i)
            stays = best(jnp.where(now, read * write, -1.0), number - drop)
            want = _norms(group, slopes, lambda m, i=inside: m in i)
            # What is off and dead comes last: there are enough that were just dropped.
            want = jnp.where(want > 0, want, jnp.where(now, 0.0, -1.0))
            out[name] = stays | grown(want, ~stays, drop)
        return out

    return update


def _norms(
    group: Group, leaves: Mapping[str, Any], chosen: Callable[[tuple[str, int]], bool]
) -> Float[Array, "n"]:
    """Per channel the norm over its slices of the chosen members; NaN counts zero."""
    total = jnp.zeros(group.size)
    for member in group.members:
        if chosen((member.path, member.axis)):
            value = jnp.nan_to_num(leaves[member.path].astype(jnp.float32))
            rest = tuple(i for i in range(value.ndim) if i != member.axis)
            at = channels(member.layout, group.name)
            sums = jnp.square(value).sum(axis=rest)
            total = total.at[at[at >= 0]].add(sums[np.flatnonzero(at >= 0)])
    return jnp.sqrt(total)


class ChannelState(NamedTuple):
    """`keep`: which channels are on; `due`: the next step changes them."""

    step: Int[Array, ""]
    due: Bool[Array, ""]
    key: PRNGKeyArray
    keep: dict[str, Bool[Array, "_"]]
    inner: Any


def scheduled_channels(
    inner: optax.GradientTransformation,
    graph: Graph,
    update_keep: UpdateKeep,
    keep: Arrays,
    *,
    every: int = 100,
    start: int = 0,
    stop: int | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """An optimiser under which channels are off, and dropped and grown in training.

    The reading side of a channel that is off is exactly zero, its writing side frozen,
    its momenta zero on both. The state's `keep` can be cut at any time:
    `cj.cut(apply, params, graph, jax.device_get(state.keep))`.

    Args:
        inner: any optimiser.
        graph: of the parameters.
        update_keep: see `UpdateKeep`; `channel_rigl(graph, stop)`.
        keep: what is on at first; of `growable` groups.
        every: steps between changes.
        start: the first step (counted from 0) that changes channels.
        stop: the last step that may; None, all.
        seed: of the keys that `update_keep` gets.

    Returns:
        An optimiser over the full parameters; `update` needs them.

    Raises:
        KeepError: a group that is not growable, or a vector of the wrong length.
        MismatchError: from `init`, parameters that are not those of the graph.
    """
    inner = optax.with_extra_args_support(inner)
    _ = reading_masks(graph, keep)
    due = cadence(every, start, stop)

    def init(params: Any) -> ChannelState:
        check_params(params, graph)
        step = jnp.zeros((), jnp.int32)
        given = {name: jnp.asarray(mask) for name, mask in keep.items()}
        small = apply_masks(params, reading_masks(graph, given))
        return ChannelState(
            step, due(step), jax.random.key(seed), given, inner.init(small)
        )

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, ChannelState]:
        step, _, key, old, before = state
        was = reading_masks(graph, old)
        small = apply_masks(params, was)
        now = jax.lax.cond(
            state.due,
            lambda: update_keep(
                step, jax.random.fold_in(key, step), small, updates, old
            ),
            lambda: dict(old),
        )
        off, both = reading_masks(graph, now), channel_masks(graph, now)
        updates, after = inner.update(
            apply_masks(updates, both),
            mask_state(before, params, both),
            apply_masks(small, off),
            **extra,
        )
        # Frozen on the writing side, landing on zero on the reading side.
        updates = map_masked(zeroed, updates, both)
        updates = map_masked(landing, updates, off, params, was)
        after = mask_state(after, params, both)
        return updates, ChannelState(step + 1, due(step + 1), key, now, after)

    return optax.GradientTransformationExtraArgs(init, update)
