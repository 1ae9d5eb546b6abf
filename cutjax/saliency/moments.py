"""Second moments of what readers read, and of the gradients of what they make.

The state has constant size, adds up over batches, and serves every task subset and
every budget afterwards.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from cutjax.errors import DataError
from cutjax.saliency.criterion import Measure, Problem, Sums
from cutjax.saliency.seen import READERS, Seen


class Moments(NamedTuple):
    """Means over examples, by (reader, group).

    `inputs`: second moment [n, n] of the group's channels, scaled to the positions that
    the reader makes. `outputs`: [tasks, m, m], of the loss gradient at what it makes,
    mean over positions, each with the weight of what is read there: where nothing is,
    as of blank tokens, nothing can be lost, however steep a norm may be. `gates`: by
    group [tasks, n], squared gate gradients at readers that have no kernel (products of
    activations, loops). `kernels`: [k, n, m]; k runs over the window and over whatever
    else is contracted beside the group. Of complex numbers moments are Hermitian.
    """

    inputs: dict[tuple[int, str], Inexact[np.ndarray, "n n"]]
    outputs: dict[int, Inexact[np.ndarray, "t m m"]]
    gates: dict[str, Float[np.ndarray, "t _"]]
    kernels: dict[tuple[int, str], Inexact[np.ndarray, "k n m"]]


def _of(seen: Seen, problem: Problem):
    w, e = seen.weights, seen.energies
    heavy = {k: v * e[k][:, None, :, None] for k, v in seen.outputs.items()}
    return (
        {
            k: jnp.einsum("bpm,bpn,b->mn", v, v.conj(), w)
            for k, v in seen.inputs.items()
        },
        {
            k: jnp.einsum("btpm,btpn,b->tmn", heavy[k].conj(), v, w)
            for k, v in seen.outputs.items()
        },
        {k: jnp.einsum("b,b->", v.mean(1), w) for k, v in e.items()},
        {k: jnp.einsum("btn,b->tn", v**2, w) for k, v in seen.unread.items()},
    )


MOMENTS = Measure(
    "readers: second moments",
    frozenset({READERS}),
    _of,
    lambda seen, problem: seen.kernels,
)


def moments(sums: Sums) -> Moments:
    """Moments from their sums.

    Raises:
        DataError: something seen was NaN: eigenvalues of it would fail without a word.
    """
    inputs, outputs, energies, gates = sums.mean()
    outputs = {k: v / np.maximum(energies[k], 1e-30) for k, v in outputs.items()}
    found = Moments(inputs, outputs, gates, sums.once)
    by_group = {f"{group} (reader {r})": v for (r, group), v in found.inputs.items()}
    by_reader = {f"reader {r}": v for r, v in found.outputs.items()}
    for name, value in {**by_group, **by_reader, **found.gates}.items():
        if not np.isfinite(value).all():
            raise DataError(
                f"joint: what was seen of {name} is NaN or infinite; look for NaN in "
                "inputs, targets or parameters, and for losses that overflow"
            )
    return found
