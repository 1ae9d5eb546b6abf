"""Closed-form compensation: readers refitted so that child and parent make the same.

No labels and no gradient steps. Parent and child are walked in lockstep; at each reader
b is what the child reads, already corrected upstream, and y what it should make: what
the parent makes, and in a residual block also what the child's skip lacks. The reader
gets the kernel, and where there is a bias the shift, that minimise
|b W' + c - y|^2 + lambda |W' - W|^2, where W is the kernel as cut: with little data it
stays what it was. Of queries and keys that lose a part of their width the later ones
get a target that makes up for it, see `products`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cutjax.graph import Graph
from cutjax.recover.normal import check_damping
from cutjax.recover.refit import Fit, way_of
from cutjax.recover.walk import recovered


def compensate(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    keep: Mapping[str, np.ndarray],
    batches: Iterable[Any],
    *,
    tasks: Sequence[str] | str | None = None,
    damping: float | None = None,
    most_features: int = 4608,
    rows: int = 32,
    sharding: jax.sharding.Sharding | None = None,
    progress: bool = True,
) -> tuple[Any, list[Fit]]:
    """The cut parameters with every reader refitted to the parent.

    Memory: what is alive of all batches at one place of the network, of parent and
    child (some activations, never all), and the moments of one reader, features^2. At
    the end the outputs are compared, of as many batches as make 2^27 numbers: should
    refitting have made them worse on the calibration data, the parameters are returned
    as cut, with a warning. Weights that serve in several places take a second walk (an
    embedding that is a head too) or a third (what a recurrence reads in every step of
    its loop), and stay as cut if it brings nothing. What is read in a `while` or in
    branches stays as cut. A kernel may be computed from one parameter, scaled and
    shifted weight by weight (`w * c`, `w + a @ b`) or rounded straight through. What is
    computed otherwise (normalised weights, products of parameters) stays as cut.

    Args:
        apply: the full function.
        params: the full parameters.
        graph: their graph.
        keep: the channels to keep.
        batches: `(x, ...)` of calibration data, of equal sizes (others are left out);
            targets are not looked at.
        tasks: as in `cut`.
        damping: lambda, as a share of the mean square of the features (about their
            mean, if there is a bias). None chooses it per reader: every fourth of
            the batches (of one batch, a quarter of the examples) is held out to judge,
            and then fitted to as well.
        most_features: convolutions with more features in their window get one mixing
            of channels for all positions of the window; wider dense layers are fitted
            to as many rows instead of to moments.
        rows: per feature, rows that suffice; of more, evenly spread ones are taken,
            but for what costs little: narrow readers see most of what there is.
        sharding: of the batches over devices.
        progress: show a progress bar.

    Returns:
        `(small_params, fits)`: as `cut` returns them, but refitted, for the function of
        `cut`; and the error of each reader before and after. Kernels and the biases (or
        running means) that follow them are new, all else is as cut.

    Raises:
        DataError: no calibration data, NaN in what a reader sees, or a damping that is
            not above 0.
        KeepError: the keep does not fit the graph.

    Warns:
        UserWarning: a reader has fewer rows than features, so that its damping is
            raised; kernels are computed in a way that is not undone, or are of weights
            that serve elsewhere as another matrix; members of an ensemble go; or all
            of it made the outputs worse.

    Reference:
        Channel pruning by least squares: He et al., ICCV 2017, eq. 2 and section 3.3;
        here in lockstep.
    """
    check_damping(damping)
    return recovered(
        *(apply, params, graph, keep, batches),
        lambda stop, number: way_of(stop, number, most_features, rows),
        tasks=tasks,
        damping=damping,
        sharding=sharding,
        progress=progress,
    )
