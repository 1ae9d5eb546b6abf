"""Channels turned into principal components: the first of them hold the most.

The residual stream of a transformer has no channels of its own: whatever writes to it
and reads it could use any other basis. In that of its principal components, cutting
channels loses the directions that hardly move, not some of all.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float
from tqdm import tqdm

from cutjax._jit import jit
from cutjax.errors import DataError
from cutjax.given import several
from cutjax.graph import Graph
from cutjax.inputs import equal_inputs, first
from cutjax.placed import relaxed
from cutjax.recover.follow import evaluated, given_to
from cutjax.recover.program import Program, program
from cutjax.recover.trial import SAME, gap, is_short, turns_of
from cutjax.recover.turned import turned
from cutjax.recover.turns import Turn, operand
from cutjax.shrink import check_params

FEW = 2
"""Examples on which it is tried what can be turned."""

ROUNDED = 0.1
"""The relative difference of outputs that rounding to half precision may make."""

FLAT = 1e-3
"""Of a scale's root mean square: less is too little to divide by."""


class Rotated(NamedTuple):
    """Parameters with turned channels.

    Attributes:
        params: of the same function.
        energy: per turned group, the share of what its readers read that lies in the
            first 1, 2, ... channels.
        left: why the others were left as they are.
    """

    params: Any
    energy: dict[str, Float[np.ndarray, " n"]]
    left: dict[str, str]


def rotate(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    batches: Iterable[Any],
    *,
    groups: Sequence[str] | str | None = None,
    progress: bool = True,
) -> Rotated:
    """Turn channels that only linear maps and normalisations see; the same function.

    Afterwards the first channels of a group hold the most: cut with `leading`, then
    `compensate`. Groups that pass through anything else (an activation, rotary angles,
    an embedding that is a head behind a scale) stay as they are.

    Args:
        apply: the function.
        params: its parameters.
        graph: their graph.
        batches: `(x, ...)` or bare inputs, all of one size; others are left out.
        groups: names of those to turn; all that can be, if not given.
        progress: show a progress bar.

    Returns:
        The parameters, in the same types and shapes; what each channel holds.

    Raises:
        DataError: no data, or values that are NaN or infinite.

    Example:
        >>> import jax.numpy as jnp, numpy as np, cutjax as cj
        >>> from cutjax.recover import leading, rotate
        >>> apply = lambda w, x: x @ w["a"] @ w["b"]
        >>> w = {"a": jnp.array([[1.0, 2.0], [1.0, 2.0]]), "b": jnp.ones((2, 1))}
        >>> x = jnp.array([[1.0, 2.0], [0.0, 3.0]])
        >>> graph = cj.trace(apply, w, x)
        >>> found = rotate(apply, w, graph, [x], progress=False)
        >>> found.energy["a:1"].round(3).tolist()
        [1.0, 1.0]
        >>> keep = leading(found, {"a:1": np.array([False, True])})
        >>> small, few = cj.cut(apply, found.params, graph, keep)
        >>> np.allclose(small(few, x), apply(w, x), atol=1e-5)
        True

    Reference:
        Ashkboos et al., SliceGPT, ICLR 2024, section 3 and theorem 1; here with one
        rotation per stream, and means (LayerNorm) kept by a basis of contrasts.
    """
    check_params(params, graph)
    params = relaxed(params)
    given = equal_inputs(batches, graph.inputs, empty="no data to rotate by")
    few = _few(apply, params, given[0])
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(params)]
    names = [g.name for g in graph.free]
    if groups is not None:
        names = [graph[name].name for name in several(groups)]

    @jit
    def answer(leaves: Sequence[Any], few: tuple[Any, ...] = few) -> list[Any]:
        return jax.tree.leaves(apply(jax.tree.unflatten(graph.treedef, leaves), *few))

    # Rounding to 16 bits would hide what a wrong turn changes.
    fine, exact = _in_32_bits((leaves, few))
    shapes = {path: _in_32_bits(shape) for path, shape in graph.shapes.items()}
    wide = replace(graph, shapes=shapes)
    tried = program(apply, wide, {}, exact), graph, partial(answer, few=exact)
    turns, left = turns_of(*tried, fine, exact, names, progress=progress)
    for turn in [t for t in turns.values() if not _sound(t, fine)]:
        left[turn.name] = "a scale before its readers is next to zero"
        del turns[turn.name]
    prog = program(apply, wide, {}, _in_32_bits(given[0]))
    grams = _grams(prog, turns, fine, given, progress)
    energy, new = {}, fine
    for name, turn in turns.items():
        matrix, energy[name] = _basis(grams[name], centred=turn.centred)
        new = turned(graph, turn, new, matrix)
    new = [a.astype(b.dtype) for a, b in zip(new, leaves, strict=True)]
    _check_same(answer(new), answer(leaves), leaves)
    return Rotated(jax.tree.unflatten(graph.treedef, new), energy, left)


def leading(
    rotated: Rotated, keep: Mapping[str, Bool[np.ndarray, "_"]]
) -> dict[str, Bool[np.ndarray, "_"]]:
    """As many channels as a keep has, but of turned groups the first ones.

    Args:
        rotated: from `rotate`.
        keep: the channels to keep, per group.

    Returns:
        A keep of the same widths.
    """
    return {
        name: np.arange(len(mask)) < np.sum(mask) if name in rotated.energy else mask
        for name, mask in keep.items()
    }


def _few(apply: Callable[..., Any], params: Any, inputs: Any) -> Any:
    """A few examples; all, where the function takes no part of a batch (a graph)."""
    few = first(inputs, FEW)
    try:
        _ = jax.eval_shape(apply, params, *few)
    except (TypeError, ValueError):
        return inputs
    return few


def _in_32_bits(tree: Any) -> Any:
    """Arrays, or their shapes, of 16 bits made wider."""

    def wider(a: Any) -> Any:
        if not is_short(a.dtype):
            return a
        shape = isinstance(a, jax.ShapeDtypeStruct)
        return a.update(dtype=jnp.float32) if shape else a.astype(jnp.float32)

    return jax.tree.map(wider, tree)


def _check_same(got: Sequence[Any], want: Sequence[Any], leaves: Sequence[Any]) -> None:
    by, short = gap(got, want), any(is_short(leaf.dtype) for leaf in leaves)
    if not by < (ROUNDED if short else SAME):
        raise DataError(
            f"rotate: the outputs would change by {by:.1e} of their size, by rounding "
            "or because something is NaN; name the groups to turn, rotate(groups=...)"
        )


def _sound(turn: Turn, leaves: Sequence[Any]) -> bool:
    for scale in turn.scales:
        factor = np.abs(np.ravel(leaves[scale.number]) + scale.offset)
        if factor.min() <= FLAT * np.sqrt(np.mean(factor**2)):
            return False
    return True


def _grams(
    prog: Program,
    turns: Mapping[str, Turn],
    leaves: Sequence[Any],
    given: Sequence[Any],
    progress: bool,
) -> dict[str, Float[np.ndarray, "n n"]]:
    """Second moments of what the readers of each group read, each as much as another.

    That is before the scales, which the kernels take up.
    """
    places = {
        name: {(operand(prog, i), place): i for i, place in turn.readers.items()}
        for name, turn in turns.items()
    }
    read = [var for found in places.values() for var, _ in found]

    def measured(leaves: Sequence[Any], x: Any) -> dict[str, Any]:
        x = _in_32_bits(x)
        env, out = evaluated(prog, given_to(prog, leaves, x), read), {}
        for name, found in places.items():
            each = []
            for (var, place), index in found.items():
                y = place.last(env[var]).astype(jnp.float32)
                y = _unscaled(turns[name], leaves, index, y.reshape(-1, y.shape[-1]))
                with jax.default_matmul_precision("highest"):
                    each.append(y.T @ y / jnp.maximum(jnp.mean(y**2), 1e-30))
            out[name] = sum(each)
        return out

    step, total = jit(measured), {}
    for x in tqdm(given, desc="rotate", disable=not progress or not turns, leave=False):
        for name, gram in step(leaves, x).items():
            if not np.isfinite(gram).all():
                raise DataError(f"rotate: what reads {name!r} reads NaN or infinity")
            total[name] = total.get(name, 0) + np.asarray(gram, np.float64)
    return total


def _unscaled(turn: Turn, leaves: Sequence[Any], index: int, y: Any) -> Any:
    for scale in turn.scales:
        if index in scale.readers:
            if scale.shift is not None:
                y = y - jnp.ravel(leaves[scale.shift])
            return y / (jnp.ravel(leaves[scale.number]) + scale.offset)
    return y


def _basis(
    gram: Float[np.ndarray, "n n"], *, centred: bool
) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, " n"]]:
    """The turn to principal components, and what the first channels hold.

    Where means are taken, component i becomes the contrast of channel i + 1 with all
    before it: the first k + 1 channels hold the first k of them and have mean zero;
    what the others add to them is a mean, which goes.
    """
    n = len(gram)
    contrasts = scipy.linalg.helmert(n).T if centred else np.eye(n)
    values, vectors = np.linalg.eigh(contrasts.T @ gram @ contrasts)
    vectors = vectors[:, ::-1]
    share = np.cumsum(np.maximum(values[::-1], 0))
    share = share / max(share[-1], 1e-30)
    if not centred:
        return vectors, share
    matrix = contrasts @ vectors @ contrasts.T + 1 / n
    return matrix, np.concatenate([[0.0], share])
