"""Correlations between the channels of several networks, in one pass over data."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from cutjax._jit import jit
from cutjax.errors import DataError, MismatchError
from cutjax.graph import Graph
from cutjax.inputs import inputs_of
from cutjax.merge.listen import Unit, activations
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

    Memory does not grow with the data, and batches of one size compile once. A group
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
        MismatchError: a network is of another architecture.

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
    for name, params in networks.items():
        check_structure(params, graph, f"network {name!r}")
    step = jit(_step(apply, graph, networks, grids))
    held = None
    length = len(batches) if hasattr(batches, "__len__") else None  # type: ignore[arg-type]
    for batch in tqdm(
        batches, desc="correlations", disable=not progress, total=length, leave=False
    ):
        inputs = inputs_of(batch, graph.inputs)
        found = jax.device_get(step(tuple(networks.values()), inputs))
        _check_finite(found, tuple(networks))
        wide = {u: double(m) for u, m in found.items()}
        held = wide if held is None else {u: both(held[u], wide[u]) for u in wide}
    if held is None:
        raise DataError(
            "the data is empty; batches must yield (x, ...) or x. A generator can be "
            "read only once: pass a list, or make a new one"
        )
    return held


def _step(
    apply: Apply | Mapping[str, Apply],
    graph: Graph,
    networks: Mapping[str, Any],
    grids: bool,
) -> Callable[..., dict[Unit, Moments]]:
    heard = [
        activations(
            apply[name] if isinstance(apply, Mapping) else apply,
            fitted(graph, params),
            grids=grids,
        )
        for name, params in networks.items()
    ]

    def step(params: Any, inputs: Any) -> dict[Unit, Moments]:
        each = [f(p, *inputs) for f, p in zip(heard, params, strict=True)]
        shapes = [{u: [m.shape for m in ms] for u, ms in one.items()} for one in each]
        for name, other in zip(networks, shapes, strict=True):
            if other != shapes[0]:
                raise MismatchError(
                    f"network {name!r} does not read its channels as "
                    f"{next(iter(networks))!r} does"
                )
        return {
            unit: of_batch([jnp.concatenate(m, 1) for m in zip(*rows, strict=True)])
            for unit in each[0]
            if (rows := [one[unit] for one in each])
        }

    return step


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
