"""Correlations between the channels of several networks, in one pass over data."""

import functools
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from cutjax._jit import jit
from cutjax.errors import DataError, KeepError, MismatchError, suggest
from cutjax.given import calling, check_by_name
from cutjax.graph import Graph
from cutjax.inputs import batches_of, inputs_of
from cutjax.merge.listen import Heard, Unit, activations
from cutjax.merge.moments import Moments, both, correlation, double, of_batch
from cutjax.merge.structure import check_structure, fitted

Apply = Callable[..., Any]


def correlations(
    apply: Apply | Mapping[str, Apply],
    graph: Graph,
    networks: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    progress: bool = True,
) -> dict[str, Float[np.ndarray, "tn tn"]]:
    """How activations of all channels of all networks go together, where they are read.

    Memory does not grow with the data: it is what all networks read of one batch.
    Networks of one function are one program, compiled once per size of a batch. A group
    that is read in several places counts each about its own mean.

    Args:
        apply: the function, or one per network where heads differ.
        graph: of all networks.
        networks: parameters by name.
        batches: `(x, ...)` or bare inputs; `x` is the input, or a tuple of inputs.
        progress: show a progress bar.

    Returns:
        By group, the correlation matrix of its channels in the first network, in the
        second, and so on; zero for channels that do not vary. Groups that are only read
        in loops, or nowhere, are missing.

    Raises:
        DataError: no batch, or an activation that is NaN or infinite.
        MismatchError: a network is of another architecture, or its function does not
            take the inputs; or no networks.
        KeepError: a network without a function.

    Example:
        >>> import jax.numpy as jnp, numpy as np, cutjax as cj
        >>> from cutjax.merge.correlation import correlations
        >>> apply = lambda w, x: x @ w["a"] @ w["b"]
        >>> w = {"a": jnp.eye(2), "b": jnp.ones((2, 1))}
        >>> graph = cj.trace(apply, w, jnp.ones((1, 2)))
        >>> x = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
        >>> nets = {"one": w, "two": w}
        >>> found = correlations(apply, graph, nets, [x], progress=False)
        >>> found["a:1"].round()[0].tolist()  # channel 0 of "one" with all four
        [1.0, 0.0, 1.0, 0.0]

    Reference:
        Stoica et al., ZipIt!, ICLR 2024.
    """
    found = gathered(apply, graph, networks, batches, grids=False, progress=progress)
    return {unit[0]: correlation(m) for unit, m in found.items()}


def gathered(
    apply: Apply | Mapping[str, Apply],
    graph: Graph,
    networks: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    grids: bool,
    progress: bool,
) -> dict[Unit, Moments]:
    """Means and products of the activations of all networks, in double precision.

    Args:
        apply: see `correlations`.
        graph: of all networks.
        networks: parameters by name.
        batches: see `correlations`.
        grids: see `listen.activations`.
        progress: show a progress bar.
    """
    check_by_name(networks, "networks", "{name: params, ...}")
    for name, params in networks.items():
        check_structure(params, graph, f"network {name!r}")
    heard = _heard(apply, graph, networks, grids)
    held = None
    given = batches_of(batches)
    length = len(given) if hasattr(given, "__len__") else None  # type: ignore[arg-type]
    for batch in tqdm(
        given, desc="correlations", disable=not progress, total=length, leave=False
    ):
        inputs = inputs_of(batch, graph.inputs)
        each = {n: heard[n](params, *inputs) for n, params in networks.items()}
        found = jax.device_get(_measure()(_beside(each)))
        _check_finite(found, tuple(networks))
        wide = {u: double(m) for u, m in found.items()}
        held = wide if held is None else {u: both(held[u], wide[u]) for u in wide}
    if held is None:
        raise DataError(
            "the data is empty; batches must yield (x, ...) or x. A generator can be "
            "read only once: pass a list, or make a new one"
        )
    return held


def _heard(
    apply: Apply | Mapping[str, Apply],
    graph: Graph,
    networks: Mapping[str, Any],
    grids: bool,
) -> dict[str, Callable[..., Heard]]:
    """By network, a program of what its readers read; alike networks run one."""
    found = {}
    for name, params in networks.items():
        if isinstance(apply, Mapping) and name not in apply:
            raise KeepError(f"no function of {name!r} in apply; {suggest(name, apply)}")
        own = apply[name] if isinstance(apply, Mapping) else apply
        shapes = tuple(tuple(jnp.shape(leaf)) for leaf in jax.tree.leaves(params))
        found[name] = _program(_Same(own), _Same(graph), shapes, grids)
    return found


class _Same:
    """What is compared by identity: graphs, and functions that hold arrays."""

    def __init__(self, value: Any) -> None:
        self.value = value
        # Each `model.apply` is a new method of the same function.
        method = isinstance(value, types.MethodType)
        parts = (value.__self__, value.__func__) if method else (value,)
        self.key = tuple(map(id, parts))

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.key == other.key


@functools.lru_cache(maxsize=8)
def _program(
    function: _Same, of: _Same, shapes: tuple[tuple[int, ...], ...], grids: bool
) -> Callable[..., Heard]:
    """Kept between calls: compiling takes longer than running."""
    apply, graph = function.value, of.value

    def told(params: Any, *inputs: Any) -> Any:
        with calling(inputs, graph.inputs):
            return apply(params, *inputs)

    known = zip(graph.shapes.values(), shapes, strict=True)
    leaves = [jax.ShapeDtypeStruct(shape, old.dtype) for old, shape in known]
    own = fitted(graph, jax.tree.unflatten(graph.treedef, leaves))
    return jit(activations(told, own, grids=grids))


def _beside(each: Mapping[str, Heard]) -> dict[Unit, list[tuple[Any, ...]]]:
    """Per unit and reader the matrices of all networks.

    Raises:
        MismatchError: a network does not read as the first does.
    """
    (first, found), *_ = each.items()
    for name, other in each.items():
        one, same = (
            {u: [m.shape for m in v] for u, v in h.items()} for h in (found, other)
        )
        if one != same:
            raise MismatchError(
                f"network {name!r} does not read its channels as {first!r} does"
            )
    return {u: [*zip(*(h[u] for h in each.values()), strict=True)] for u in found}


@functools.cache
def _measure() -> Callable[..., dict[Unit, Moments]]:
    def measured(rows: Mapping[Unit, list[tuple[Any, ...]]]) -> dict[Unit, Moments]:
        return {
            unit: of_batch([jnp.concatenate(matrices, 1) for matrices in readers])
            for unit, readers in rows.items()
        }

    return jit(measured)


def _check_finite(found: Mapping[Unit, Moments], names: tuple[str, ...]) -> None:
    for unit, m in found.items():
        good = np.isfinite(m.mean).all(0) & np.isfinite(np.diag(m.square))
        if not good.all():
            each = good.reshape(len(names), -1).all(1)
            raise DataError(
                f"activations of {' and '.join(map(repr, unit))} in network "
                f"{names[int(np.argmin(each))]!r} are NaN or infinite; look for NaN in "
                "the inputs and the parameters"
            )
