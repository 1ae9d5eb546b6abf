"""The parts of parameters: what is trained, what is state, in which type to compute."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr
from jaxtyping import Array

from cutjax.data.examples import inputs_in
from cutjax.errors import MismatchError
from cutjax.held import top_level

TrainApply = Callable[..., tuple[Any, Mapping[str, Any] | None]]


def lowered(train_apply: TrainApply, dtype: Any, names: tuple[str, ...]) -> TrainApply:
    """The same function computing in another type.

    Args:
        train_apply: see `cutjax.fit.fit`.
        dtype: of parameters and inputs within; `jnp.bfloat16`.
        names: what is state and stays as it is, see `state_names`.

    Returns:
        A function of parameters in their own type, whose outputs are float32 and whose
        state keeps its type.
    """

    def low(path: tuple[Any, ...], leaf: Any) -> Any:
        return leaf if _in(path, names) else _cast(leaf, dtype)

    def apply(params: Any, *inputs: Any) -> tuple[Any, Mapping[str, Any]]:
        small = jax.tree_util.tree_map_with_path(low, params)
        given = jax.tree.map(lambda leaf: _cast(leaf, dtype), inputs)
        outputs, updates = train_apply(small, *given)
        outputs = jax.tree.map(lambda leaf: _cast(leaf, jnp.float32), outputs)
        made = (updates or {}).items()
        return outputs, {n: of_type(tree, _only(params[n], tree)) for n, tree in made}

    return apply


def held_as(like: Any, tree: Any) -> Any:
    """The leaves of a pytree in the containers of another of the same names.

    What is in a `FrozenDict` or a `State` may be made as dicts, which no `tree.map`
    takes beside it.
    """
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(tree))


def updated(params: Any, entries: Mapping[str, Any]) -> Any:
    """Parameters with these top-level entries, in a container of the same type.

    Of an entry that is there, some leaves may be given alone (None for the others).
    """
    held = top_level(params)
    new = {k: _entry(held[k], v) if k in held else v for k, v in entries.items()}
    return type(params)({**held, **new})


def _entry(old: Any, new: Any) -> Any:
    leaves = jax.tree.leaves(new)
    if len(leaves) == jax.tree.structure(old).num_leaves:
        return held_as(old, new)
    given = iter(leaves)
    found = _paths(new)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: next(given) if keystr(path) in found else leaf, old
    )


def _only(old: Any, new: Any) -> Any:
    """Leaves of an entry, those of an update alone, in its containers."""
    found = _paths(new)
    if len(found) == jax.tree.structure(old).num_leaves:
        return held_as(new, old)
    named = jax.tree_util.tree_leaves_with_path(old)
    some = [leaf for path, leaf in named if keystr(path) in found]
    return jax.tree.unflatten(jax.tree.structure(new), some)


def _paths(tree: Any) -> dict[str, Any]:
    return {keystr(p): v for p, v in jax.tree_util.tree_leaves_with_path(tree)}


def _in(path: tuple[Any, ...], names: Collection[str]) -> bool:
    """Whether names are of the top-level entry that a path leads into, or of it."""
    return bool(names) and (path[0].key in names or keystr(path) in names)


def without(params: Any, names: Collection[str]) -> Any:
    """Parameters without these top-level entries, in a container of the same type."""
    return type(params)({k: v for k, v in top_level(params).items() if k not in names})


def heeding(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """An optimiser that may be told more than gradients: it hears what it takes.

    Example:
        >>> tx = heeding(optax.sgd(1.0))
        >>> change, _ = tx.update(2.0, tx.init(0.0), value=3.0)
        >>> float(change)
        -2.0
    """
    told = optax.with_extra_args_support(optimizer)
    takes = inspect.signature(told.update).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in takes):
        return told
    names = {p.name for p in takes}

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        some = {name: value for name, value in extra.items() if name in names}
        return told.update(updates, state, params, **some)

    return optax.GradientTransformationExtraArgs(told.init, update)


def wide(leaf: Any) -> Array:
    """An array in which small parts add up: of 32 bits at least, if it is floating.

    In 16 bits an average stands still once its steps are below a rounding.
    """
    leaf = jnp.asarray(leaf)
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    narrow = floating and jnp.finfo(leaf.dtype).bits < 32
    return leaf.astype(jnp.float32) if narrow else leaf


def of_type(tree: Any, like: Any) -> Any:
    """The leaves of a pytree in the types of another, rounded once."""
    return jax.tree.map(
        lambda leaf, old: leaf if leaf.dtype == old.dtype else leaf.astype(old.dtype),
        tree,
        like,
    )


def _cast(leaf: Any, dtype: Any) -> Any:
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jnp.asarray(leaf, dtype) if floating else leaf


def made_of(train_apply: TrainApply, params: Any, x: Any) -> tuple[Any, Any]:
    """The shapes of outputs and updates.

    Args:
        train_apply: see `cutjax.fit.fit`.
        params: the parameters.
        x: shapes of a batch.

    Raises:
        MismatchError: the function does not return both.
    """
    made = jax.eval_shape(train_apply, params, *inputs_in(x))
    both = isinstance(made, tuple | list) and len(made) == 2
    if not both or (made[1] and not isinstance(made[1], Mapping)):
        kinds = [type(part).__name__ for part in made] if both else type(made).__name__
        raise MismatchError(
            f"fit: train_apply returned {kinds}, expected (outputs, updates), updates "
            "by name; pass cutjax.recover.frozen(apply) for a function in inference"
        )
    return made[0], made[1]


def state_names(train_apply: TrainApply, params: Any, x: Any) -> tuple[str, ...]:
    """What of `params` training replaces: top-level entries, whole or in part.

    Args:
        train_apply: see `cutjax.fit.fit`.
        params: the parameters.
        x: shapes of a batch.

    Returns:
        Names of whole entries; and paths (`keystr`) of leaves, where an update has
        None for others of its entry.

    Raises:
        ValueError: updates that do not belong to `params`.
    """
    _, updates = made_of(train_apply, params, x)
    if not updates:
        return ()
    if not isinstance(params, Mapping) or not set(updates) <= set(params):
        keys = sorted(params) if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(
            f"fit: updates replace {sorted(updates)}, but the top level of params is "
            f"{keys}; updates may only name top-level entries of a dict of params"
        )
    found: list[str] = []
    for name, new in updates.items():
        old = jax.eval_shape(lambda tree: tree, params[name])
        if jax.tree.map(_signature, old) == jax.tree.map(_signature, new):
            found.append(name)
            continue
        known = {path: _signature(leaf) for path, leaf in _paths({name: old}).items()}
        given = {path: _signature(leaf) for path, leaf in _paths({name: new}).items()}
        if not given or not given.items() <= known.items():
            raise ValueError(
                f"fit: the update of {name!r} has other shapes than params[{name!r}]"
            )
        found += given
    return tuple(found)


def _signature(leaf: Any) -> tuple[Any, Any]:
    return leaf.shape, leaf.dtype


def divide(params: Any, names: tuple[str, ...]) -> tuple[Any, Any]:
    """What is trained and what is not, each shaped like `params` with None elsewhere.

    Args:
        params: a pytree.
        names: of what is state, see `state_names`.

    Returns:
        `(free, fixed)`; `join` puts them together again.

    Example:
        >>> divide({"w": 1.0, "seen": 2.0, "n": 3}, ("seen",))
        ({'n': None, 'seen': None, 'w': 1.0}, {'n': 3, 'seen': 2.0, 'w': None})
    """

    def trained(path: tuple[Any, ...], leaf: Any) -> bool:
        return not _in(path, names) and jnp.issubdtype(
            jnp.result_type(leaf), jnp.floating
        )

    chosen = jax.tree_util.tree_map_with_path(trained, params)
    free = jax.tree.map(lambda leaf, t: leaf if t else None, params, chosen)
    fixed = jax.tree.map(lambda leaf, t: None if t else leaf, params, chosen)
    return free, fixed


def join(free: Any, fixed: Any) -> Any:
    """The pytree that `divide` took apart."""
    return jax.tree.map(
        lambda a, b: b if a is None else a,
        free,
        fixed,
        is_leaf=lambda leaf: leaf is None,
    )
