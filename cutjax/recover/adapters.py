"""Adapters: few parameters trained beside a frozen network, folded into it afterwards.

A low-rank adapter adds A B to a kernel, over the axes that it reads and those that it
makes; a scaling adapter multiplies what a kernel makes, channel by channel, and shifts
the vectors (biases). Both start as the identity. The network runs on folded parameters,
so any function will do, and folding changes nothing.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from cutjax.dims import leaves
from cutjax.errors import CutjaxError, KeepError, MismatchError, suggest
from cutjax.given import several
from cutjax.graph import Graph
from cutjax.mirror import named_leaves, path_name
from cutjax.readers import is_conv, is_linear, kernel_matrix
from cutjax.recover.statistics import statistics
from cutjax.resize import Kept, Reader, Run
from cutjax.shrink import check_params, rewrite

KINDS = ("lowrank", "scale", "both")
Entry = Mapping[str, Array]
OPEN, CLOSED = "open", "closed"


def adapters(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    *inputs: Any,
    rank: int = 4,
    key: PRNGKeyArray | None = None,
    kind: str = "lowrank",
    where: Callable[[str], bool] | None = None,
    open: Iterable[str] | str | None = None,
    state: Iterable[str] | str | None = None,
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A network frozen behind adapters, and the adapters.

    Args:
        apply: the function in inference, `(params, *inputs) -> outputs`.
        params: its parameters; they stay as they are.
        graph: its graph: of a compact model, from `trace` of that.
        *inputs: a batch, or its shapes.
        rank: of A B; less where an axis is shorter.
        key: for A; `jax.random.key(0)` if not given. B starts at zero.
        kind: "lowrank", "scale" or "both".
        where: which parameters to adapt, by path; all kernels that readers read, and
            for "scale" vectors, if not given.
        open: groups to train, see `opened`; all, if not given.
        state: parts of the paths that tell statistics, which get no shift; if not
            given, `batch_stats`, and vectors called `mean` and `var` side by side, as
            `cutjax.nnx.split` makes them.

    Returns:
        `(adapted_apply, adapter_params)`. `frozen(adapted_apply, ("closed",))` is what
        `fit` and `finetune` train; `fold(params, adapter_params)` are parameters of
        `apply` with which it computes the same.

    Raises:
        MismatchError: the parameters do not match the graph.
        KeepError: nothing is left to adapt.
        CutjaxError: an unknown kind, or a rank below 1.

    Example:
        >>> import cutjax as cj
        >>> apply = lambda w, x: jnp.tanh(x @ w["a"]) @ w["b"]
        >>> w = {"a": jnp.ones((20, 30)), "b": jnp.ones((30, 10))}
        >>> graph = cj.trace(apply, w, jnp.ones((1, 20)))
        >>> adapted, small = adapters(apply, w, graph, jnp.ones((1, 20)), rank=2)
        >>> trained(small), bool((adapted(small, jnp.ones(20)) == 300).all())
        (180, False)

    Reference:
        Hu et al., LoRA, ICLR 2022, eq. 3; Perez et al., FiLM, AAAI 2018, eq. 2.
    """
    check_params(params, graph)
    _check_kind(kind, rank)
    chosen = where or (lambda path: True)
    made = {
        p: a for p, a in made_axes(apply, params, graph, *inputs).items() if chosen(p)
    }
    vectors = [] if kind == "lowrank" else _vectors(graph, state)

    # One program for all: drawing eagerly would compile for every shape.
    @jax.jit
    def begin(key: Any) -> dict[str, dict[str, Array]]:
        found: dict[str, dict[str, Array]] = {}
        for number, (path, axes) in enumerate(made.items()):
            shape, own = graph.shapes[path].shape, jax.random.fold_in(key, number)
            found[path] = _begun(shape, axes, rank, kind, own)
        shifts = {p: {"shift": jnp.zeros(graph.shapes[p].shape)} for p in vectors}
        return {**found, **{p: e for p, e in shifts.items() if chosen(p)}}

    found = begin(jax.random.key(0) if key is None else key)
    if not found:
        raise KeepError("adapters: no kernel that is read, and `where` allows, is left")

    def adapted(adapter_params: Any, *inputs: Any) -> Any:
        return apply(fold(params, adapter_params), *inputs)

    return adapted, opened({OPEN: found, CLOSED: {}}, graph, open)


def fold(params: Any, adapter_params: Mapping[str, Mapping[str, Entry]]) -> Any:
    """Ordinary parameters that do what the adapters do.

    Args:
        params: the frozen parameters.
        adapter_params: from `adapters`.

    Returns:
        A pytree of the same shapes and types.

    Raises:
        MismatchError: adapters of parameters that are not there.
    """
    entries = {**adapter_params[OPEN], **adapter_params[CLOSED]}
    named = named_leaves(params)
    if missing := [path for path in entries if path not in named]:
        raise MismatchError(
            f"no parameter {missing[0]!r} to fold adapters into; "
            f"{suggest(missing[0], named)}"
        )

    def visit(path: tuple[Any, ...], leaf: Any) -> Any:
        entry = entries.get(path_name(path))
        return leaf if entry is None else _folded(leaf, entry)

    return jax.tree_util.tree_map_with_path(visit, params)


def opened(
    adapter_params: Mapping[str, Mapping[str, Entry]],
    graph: Graph,
    names: Iterable[str] | str | None,
) -> dict[str, dict[str, Entry]]:
    """The adapters divided anew into those that are trained and those that wait.

    Args:
        adapter_params: from `adapters`, trained or not.
        graph: the graph.
        names: groups, or paths of parameters: adapters of what makes these channels are
            trained. All, for None.

    Returns:
        `{"open": ..., "closed": ...}`; what is closed still counts in the function.

    Raises:
        KeepError: nothing is adapted at a name.
    """
    entries = {**adapter_params[OPEN], **adapter_params[CLOSED]}
    if names is None:
        return {OPEN: entries, CLOSED: {}}
    at = {path: {path, *groups_of(graph, path, e)} for path, e in entries.items()}
    wanted = {*several(names)}
    for name in sorted(wanted):
        if not any(name in known for known in at.values()):
            known = sorted(set().union(*at.values()))
            raise KeepError(f"no adapter at {name!r}; {suggest(name, known)}")
    free = {path: entry for path, entry in entries.items() if at[path] & wanted}
    rest = {path: entry for path, entry in entries.items() if path not in free}
    return {OPEN: free, CLOSED: rest}


def groups_of(graph: Graph, path: str, entry: Entry) -> set[str]:
    """The groups that an adapter changes: those that its parameter makes.

    Args:
        graph: the graph.
        path: of the parameter.
        entry: its adapter.

    Returns:
        Names of groups.
    """
    shape = next(v for k, v in entry.items() if k != "a").shape
    axes = [a for a, n in zip(graph.axes[path], shape, strict=False) if n != 1]
    return {leaf.name for axis in axes for leaf in leaves(axis)}


def trained(adapter_params: Mapping[str, Any]) -> int:
    """How many numbers are trained: those of the open adapters."""
    return sum(leaf.size for leaf in jax.tree.leaves(adapter_params[OPEN]))


def made_axes(
    apply: Callable[..., Any], params: Any, graph: Graph, *inputs: Any
) -> dict[str, tuple[int, ...]]:
    """Which axes of a kernel make channels; the others are read, or are its window.

    Found by sending coordinates through whatever moves a kernel to where it is read: an
    axis makes channels if its coordinate differs from one column of the kernel's matrix
    to another. Readers whose kernel is folded so that an axis does both are left out.

    Args:
        apply: the function.
        params: its parameters; only their shapes matter.
        graph: its graph.
        *inputs: a batch, or its shapes.

    Returns:
        Axes by path of the parameter.
    """
    paths = list(graph.shapes)

    def differs(params: Any, *inputs: Any) -> dict[str, Array]:
        found: dict[str, Array] = {}

        def hook(kept: Kept, reader: Reader, run: Run, args: list[Any]) -> list[Any]:
            if is_linear(reader) or _grouped(reader):
                at = 1 - reader.site.at
                m = kernel_matrix(reader, args[at])
                by = jnp.stack([jnp.any(m != m[:, :, :1]), jnp.any(m != m[:1, :1])])
                path = paths[reader.ins[at].param]  # type: ignore[index]
                found[path] = found[path] | by if path in found else by
            return run(args)

        _ = rewrite(apply, graph, {}, hook=hook, flat=True)(params, *inputs)
        return found

    answer = jax.jit(differs)
    zeros = jax.tree.map(lambda x: np.zeros(jnp.shape(x), _dtype(x)), inputs)
    most = max(len(s.shape) for s in graph.shapes.values())
    found: dict[str, list[np.ndarray]] = {}
    for axis in range(most):
        for path, by in answer(_coordinates(graph, axis), *zeros).items():
            found.setdefault(path, []).append(np.asarray(by))
    out = {}
    for path, by in found.items():
        columns, rows = np.stack(by).T[:, : len(graph.shapes[path].shape)]
        if not (columns & rows).any():
            out[path] = tuple(np.flatnonzero(columns).tolist())
    return out


def _grouped(reader: Reader) -> bool:
    """Whether a parameter is the kernel of a convolution in groups of channels.

    It is one matrix all the same: from what a group reads to what all groups make.
    """
    if not is_conv(reader) or reader.site.at != 0 or len(reader.ins) != 2:
        return False
    data, kernel = reader.ins
    plain = not reader.site.looped and reader.site.summed is None and data.data
    one = kernel.param is not None and not kernel.data
    return bool(plain and one and reader.eqn.params["batch_group_count"] == 1)


def _check_kind(kind: str, rank: int) -> None:
    if kind not in KINDS:
        raise CutjaxError(f"no kind {kind!r}; {suggest(kind, KINDS)}")
    if kind != "scale" and rank < 1:
        raise CutjaxError(
            f"rank={rank} leaves nothing to train; give 1 or more, or kind='scale'"
        )


def _dtype(x: Any) -> Any:
    return x.dtype if hasattr(x, "dtype") else jnp.result_type(x)


def _coordinates(graph: Graph, axis: int) -> Any:
    """Parameters that hold, everywhere, their coordinate along an axis."""

    def of(like: Any) -> np.ndarray:
        if axis >= len(like.shape):
            return np.zeros(like.shape, like.dtype)
        shape = [-1 if i == axis else 1 for i in range(len(like.shape))]
        # Small numbers, which bfloat16 holds too: that they differ is enough.
        where = (np.arange(like.shape[axis]) % 128).reshape(shape)
        return np.broadcast_to(where, like.shape).astype(like.dtype)

    return jax.tree.unflatten(graph.treedef, [of(s) for s in graph.shapes.values()])


def _begun(
    shape: tuple[int, ...],
    made: tuple[int, ...],
    rank: int,
    kind: str,
    key: PRNGKeyArray,
) -> dict[str, Array]:
    """The identity as adapters of one kernel."""
    entry = {} if kind == "scale" else _low_rank(shape, made, rank, key)
    if kind != "lowrank":
        kept = tuple(n if i in made else 1 for i, n in enumerate(shape))
        entry["scale"] = jnp.zeros(kept)
    return entry


def _low_rank(
    shape: tuple[int, ...], made: tuple[int, ...], rank: int, key: PRNGKeyArray
) -> dict[str, Array]:
    """A over the axes read and B over those made; both as wide as the kernel."""
    fan_in = math.prod(n for i, n in enumerate(shape) if i not in made)
    fan_out = math.prod(shape[i] for i in made)
    rank = min(rank, fan_in, fan_out)
    a = tuple(1 if i in made else n for i, n in enumerate(shape))
    b = tuple(n if i in made else 1 for i, n in enumerate(shape))
    drawn = jax.random.normal(key, (*a, rank)) / math.sqrt(max(fan_in, 1))
    return {"a": drawn, "b": jnp.zeros((*b, rank))}


def _folded(leaf: Any, entry: Entry) -> Any:
    out = jnp.asarray(leaf, jnp.float32)
    if "a" in entry:
        out = out + _product(entry["a"], entry["b"])
    if "scale" in entry:
        out = out * (1 + entry["scale"])
    if "shift" in entry:
        out = out + entry["shift"]
    return out.astype(_dtype(leaf))


def _product(a: Array, b: Array) -> Array:
    """The sum over the rank of a times b, as one matrix product."""
    made = [i for i, n in enumerate(b.shape[:-1]) if n != 1]
    read = [i for i in range(a.ndim - 1) if i not in made]
    flat = a.reshape(-1, a.shape[-1]) @ b.reshape(-1, b.shape[-1]).T
    sizes = [a.shape[i] for i in read] + [b.shape[i] for i in made]
    return flat.reshape(sizes).transpose(np.argsort([*read, *made]))


def _vectors(graph: Graph, state: Iterable[str] | str | None) -> list[str]:
    held = statistics(graph.shapes, state)
    return [
        path
        for path, like in graph.shapes.items()
        if len(like.shape) == 1
        and not held(path)
        and jnp.issubdtype(like.dtype, jnp.floating)
    ]
