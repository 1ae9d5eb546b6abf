"""One reader refitted: which rows are taken, which fit is made, where it is written."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from cutjax.readers import channel_axes, is_conv
from cutjax.recover import normal
from cutjax.recover.normal import Moments, Solution
from cutjax.recover.program import Program
from cutjax.recover.rows import (
    enough,
    features_of,
    kernel_blocks,
    kernel_from,
    made_axes,
    steps_for,
)
from cutjax.recover.stops import Stop
from cutjax.rules.base import Value

FEW = 1e-3
"""The least damping where there are fewer rows than features."""

ROUNDING = 1e-7
"""Squared error over squared target that is rounding of float32, no reason to choose.

Where little or nothing was lost, any damping may look best, and the least undoes most.
"""

JUDGES = 64
"""Of the channels that a reader makes, how many its damping is chosen by."""


class Fit(NamedTuple):
    """One reader: squared error over squared target, as cut and refitted.

    The target is what the reader should make, or, where it makes more than it reads
    (and for wide windows), what the parent reads. `path` of its kernel, or paths with
    " + " between them. `features` of a row, `rows` that were fitted to, `damping` of
    the ridge.
    """

    path: str
    before: float
    after: float
    features: int
    rows: int = 0
    damping: float = 0.0


class Way(NamedTuple):
    """How a reader is refitted.

    `name`: "kernel" (every weight), "mixing" (one matrix of channels before the
    parent's kernel, for all positions of a wide window; for a dense layer that makes
    more than it reads the same fit, of less), "rows" (every weight, from the rows
    themselves: more features than their moments should have) or "scale" (one number
    per channel made). `steps`: every how many rows are taken, as in `Sample`.
    """

    name: str
    steps: tuple[int, ...] = ()


class Found(NamedTuple):
    """What was measured at a reader: in batches to fit to, and in those held out.

    Of a single batch in some of its rows; where rows are kept, `aside` first says which
    of them are held out.
    """

    fitting: Any = None
    aside: Any = None

    def and_also(self, other: "Found", *, held: bool) -> "Found":
        """With one more batch, on the device; gives up what there was."""
        if other.aside is not None:
            return other
        name, part = "aside" if held else "fitting", other.fitting
        before = getattr(self, name)
        if before is not None and isinstance(part, Moments):
            part = normal.joined(before, part)
        elif before is not None:
            part = joined(before, jax.tree.map(np.asarray, part))
        return self._replace(**{name: part})

    def on_host(self) -> "Found":
        """The same in numpy; moments in double precision. No part is empty."""
        fitting, aside = map(_on_host, self)
        if isinstance(aside, np.ndarray):
            sides = (~aside, aside)
            fitting, aside = (normal.Rows(*(v[:, of] for v in fitting)) for of in sides)
        if fitting is None or aside is None or (_count(fitting) and _count(aside)):
            return Found(fitting, aside)
        return Found(joined(fitting, aside))

    def about(self, means: "Means") -> "Found":
        """The same rows less these means."""

        def part(found: Any) -> Any:
            if found is None:
                return None
            read, made = means if isinstance(found, Moments) else _along_rows(means)
            return found._replace(read=found.read - read, made=found.made - made)

        return Found(*map(part, self))

    def means(self) -> "Means":
        """Of what is read [g, f] and what should be made [g, m], in all rows."""
        whole = joined(self.fitting, self.aside)
        if isinstance(whole, Moments):
            return Means(whole.read, whole.made)
        return Means(whole.read.mean(1), whole.made.mean(1))

    def sound(self) -> bool:
        """Whether all of it is finite."""
        return all(normal.sound(part) for part in self if isinstance(part, tuple))

    def joined(self, other: "Found") -> "Found":
        """What was found at two readers of the same weights."""
        return Found(*(joined(a, b) for a, b in zip(self, other, strict=True)))


class Means(NamedTuple):
    """Of what a reader reads, and of what it should make."""

    read: Any
    made: Any

    def shift(self, stop: Stop, kernel: Any) -> Float[np.ndarray, " m"]:
        """What has to be added to what a kernel makes of the one to have the other."""
        blocks = kernel_blocks(stop.reader, np.asarray(kernel, np.float64), stop.groups)
        return (self.made - np.einsum("gf,gfm->gm", self.read, blocks)).ravel()


def _along_rows(means: Means) -> Means:
    return Means(*(value[:, None] for value in means))


def _on_host(part: Any) -> Any:
    if isinstance(part, Moments):
        return normal.merged([part])
    return jax.tree.map(np.asarray, part)


def _count(part: Any) -> int:
    """How many rows there are."""
    return int(part.read.shape[1] if isinstance(part, normal.Rows) else part.count)


def way_of(stop: Stop, batches: int, most_features: int, rows_each: int) -> Way:
    """How a reader should be refitted, by its size.

    Args:
        stop: the reader.
        batches: how many there are; of one in a loop, times its steps.
        most_features: that moments are made of.
        rows_each: per feature, rows that suffice.
    """
    wide = stop.features > most_features
    if wide and is_conv(stop.reader):
        return Way("mixing")
    wanted = most_features if wide else enough(stop.features, rows_each, stop.groups)
    steps = steps_for(stop.reader, batches, wanted)
    if wide:
        return Way("rows", steps)
    return Way("mixing" if _makes_more(stop) else "kernel", steps)


def _makes_more(stop: Stop) -> bool:
    """Whether what the parent reads is fewer targets than what it makes of it.

    Only where nothing else is asked of the reader, and where it is the only one.
    """
    alone = stop.tied in (None, stop.place) and not stop.taught and not stop.padded
    if is_conv(stop.reader) or stop.inner or stop.reach.other is not None or not alone:
        return False
    _, (batch, _) = stop.reader.eqn.params["dimension_numbers"]
    made = math.prod(stop.kernel.shape) // stop.features
    full = stop.reader.eqn.invars[stop.at_kernel].aval
    return not batch and made > features_of(stop.reader, full)


def scaling_of(stop: Stop, batches: int, rows: int) -> Way:
    """The way to set only scales right; from few rows, however wide the reader."""
    return Way("scale", way_of(stop, batches, stop.features, rows).steps)


def refitted(
    prog: Program,
    stop: Stop,
    way: Way,
    found: Found,
    kernels: Any,
    damping: float | None,
) -> tuple[Any, np.ndarray | None, Fit]:
    """The kernel that fits, what its bias gains per channel, and how well it fits.

    Args:
        prog: the program.
        stop: the reader.
        way: how to refit it.
        found: what `measure` found in all batches.
        kernels: the pair of kernels as they stand.
        damping: of the ridge; None to choose it by batches held out.
    """
    mixing = way.name == "mixing"
    prior = _prior(prog, stop, kernels, mixing=mixing)
    intercept = stop.bias is not None and not (mixing and is_conv(stop.reader))
    solve, error = _solvers(way, prior, intercept=intercept)
    whole = joined(found.fitting, found.aside)
    count = _count(whole)
    least = FEW if count < prior.shape[1] and way.name != "scale" else 0.0
    if way.name == "scale":
        damping = 0.0
    if damping is None:
        damping = _chosen(way, found, prior, least, intercept=intercept)
    damping = max(damping, least)
    fit = solve(whole, damping)
    as_cut = Solution(prior, 0 * fit.shift)
    before, after = error(whole, as_cut), error(whole, fit)
    facts = Fit(stop.path, before, after, prior.shape[1], count, damping)
    if mixing:
        fit = _mixed(prog, stop, kernels, fit)
    kernel = kernel_from(stop.reader, fit.kernel, kernels.child, stop.groups)
    return kernel, fit.shift if intercept else None, facts


def _chosen(
    way: Way, found: Found, prior: Any, least: float, *, intercept: bool
) -> float:
    """The damping that is best for what was held out; not less than `least`."""
    fitting, aside = found.fitting, found.aside
    if aside is None:
        return 1e-3
    if way.name != "rows":
        # A few of what a wide reader makes tell as much about it.
        aside, _ = normal.some_targets(aside, prior, JUDGES)
        fitting, prior = normal.some_targets(fitting, prior, JUDGES)
    solve, error = _solvers(way, prior, intercept=intercept, strict=True)
    as_cut = Solution(prior, np.zeros((len(prior), prior.shape[-1])))
    if error(aside, as_cut) < ROUNDING:
        return 1e-3

    def loss(damping: float) -> float:
        try:
            return error(aside, solve(fitting, damping))
        except np.linalg.LinAlgError:
            return math.inf

    return normal.chosen(loss, least)


def _solvers(
    way: Way, prior: Any, *, intercept: bool, strict: bool = False
) -> tuple[Callable[..., Solution], Callable[..., float]]:
    """How a fit is made of what was measured, given a damping, and its error."""
    if way.name == "rows":
        return (
            lambda data, d: normal.solve_rows(data, prior, d, intercept=intercept),
            normal.error_rows,
        )

    def solve(data: Moments, damping: float) -> Solution:
        if way.name == "scale":
            return normal.rescaled(data, prior, intercept=intercept)
        return normal.solve(data, prior, damping, intercept=intercept, strict=strict)

    return solve, lambda data, fit: normal.error(data, fit, intercept=intercept)


def joined(a: Any, b: Any) -> Any:
    """What was measured in both; None is nothing."""
    if a is None or b is None:
        return b if a is None else a
    if isinstance(a, Moments):
        return normal.merged([a, b])
    return normal.Rows(*(np.concatenate(v, 1) for v in zip(a, b, strict=True)))


def _prior(prog: Program, stop: Stop, kernels: Any, *, mixing: bool) -> Any:
    """What a reader does as cut: its kernel; or, of channels, their selection."""
    if not mixing:
        child = np.asarray(kernels.child, np.float64)
        return kernel_blocks(stop.reader, child, stop.groups)
    stays = _stays(prog, stop)
    return np.eye(len(stays))[stays][None]


def _stays(prog: Program, stop: Stop) -> np.ndarray:
    operand = stop.reader.ins[stop.reader.site.at]
    return _mask(prog, operand, channel_axes(stop.reader, stop.reader.site.at))


def _mask(prog: Program, value: Value, axes: Sequence[int]) -> np.ndarray:
    """What is kept of some axes of a value, as one axis."""
    masks = [prog.evaluator.k.mask(value.dims[axis]) for axis in axes]
    return functools.reduce(np.logical_and.outer, masks).ravel()


def _mixed(prog: Program, stop: Stop, kernels: Any, fit: Solution) -> Solution:
    """The parent's kernel behind one mixing of what it reads, for all of a window."""
    reader, (mix,) = stop.reader, fit.kernel
    kept = _mask(prog, reader.outs[0], made_axes(reader, stop.kernel))
    parent = np.asarray(kernels.parent, np.float64)
    (blocks,) = kernel_blocks(reader, parent)[..., kept]
    shift = fit.shift if is_conv(reader) else fit.shift @ blocks
    by_position = blocks.reshape(-1, mix.shape[1], blocks.shape[-1])
    mixed = (mix @ by_position).reshape(1, -1, blocks.shape[-1])
    return Solution(mixed, shift)
