"""What one batch alone adds to running statistics, read off their updates.

A running average moves by `new = m * old + (1 - m) * batch`. From zeros it makes
`(1 - m) * batch`; from a start on the scale of that, m is what the start still weighs.
Both give the batch, and a third start tells whether the update is such an average.

Haiku keeps two numbers for each average, `hidden` and `average = hidden / (1 - m **
counter)`: the batch is read off the first, and the ratio of the two stays as it is.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from cutjax.losses import wide

Moved = Callable[[Sequence[Array]], Sequence[Array]]
"""What an update makes of the statistics it starts from."""


class Found(NamedTuple):
    """The statistics of a batch, and how far each is from a running average.

    Attributes:
        batch: the statistics, by path.
        off: by path, above 1 where the update is no running average.
        kept: by path, the lowest and the highest momentum of its elements.
    """

    batch: dict[str, Array]
    off: dict[str, Float[Array, ""]]
    kept: dict[str, tuple[Float[Array, ""], Float[Array, ""]]]


def floating(leaf: Any) -> bool:
    """Whether a leaf may be a statistic: no counter, no flag, no random key."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def of_batch(moved: Moved, old: dict[str, Array]) -> Found:
    """The statistics of one batch.

    Args:
        moved: the update, of statistics in the order of `old`.
        old: the statistics as they are, by path, in float32 at least.

    Returns:
        What was found; a statistic that never moves (momentum 1) is what it was.
    """
    names, held = list(old), list(old.values())
    zeros = [wide(z) for z in moved([jnp.zeros_like(leaf) for leaf in held])]
    # A unit far below the batch is lost beside it in float32.
    units = [jnp.ldexp(1.0, jnp.maximum(jnp.frexp(z)[1], 0)) for z in zeros]
    raised = moved([u.astype(a.dtype) for u, a in zip(units, held, strict=True)])
    rows = zip(names, raised, zeros, units, strict=True)
    kept = {n: (wide(one) - zero) / unit for n, one, zero, unit in rows}
    pairs = debiased(names)
    kept |= {average: kept[hidden] for average, hidden in pairs.items()}
    made = dict(zip(names, zeros, strict=True))
    batch = {}
    for name, leaf in old.items():
        zero = made[pairs.get(name, name)]
        batch[name] = jnp.where(kept[name] >= 1, leaf, zero / (1 - kept[name]))
    batch = follow(batch, old)
    off = _off(moved, batch, kept)
    return Found(batch, off, {n: (k.min(), k.max()) for n, k in kept.items()})


def _off(
    moved: Moved, batch: dict[str, Array], kept: dict[str, Array]
) -> dict[str, Float[Array, ""]]:
    """How far a third start ends from where an average would, 1 being what may be."""
    pairs = debiased(batch)
    scales = {n: jnp.maximum(jnp.abs(b).max(initial=0), 1e-3) for n, b in batch.items()}
    scales |= {hidden: jnp.zeros(()) for hidden in pairs.values()}
    ends = moved([batch[n] + 2 * scales[n] for n in batch])
    off = {}
    for (name, b), end in zip(batch.items(), ends, strict=True):
        m, scale = kept[name], scales[name]
        # The start of an average plays no part: it is made of `hidden`.
        want = b if name in pairs else b + m * (2 * scale)
        allowed = scale * (1e-3 * jnp.maximum(1 - m, 0) + 2e-6)
        wrong = jnp.where(m >= 1, 0, jnp.abs(wide(end) - want) / allowed)
        outside = (m < -1e-4) | (m > 1 + 1e-4)
        coarse = (jnp.finfo(end.dtype).bits < 32) & (m > 0) & (m < 1)
        wrong = jnp.where(outside | coarse, jnp.inf, wrong)
        off[name] = jnp.zeros(()) if name in pairs.values() else wrong.max(initial=0)
    return off


def debiased(names: Sequence[str] | dict[str, Any]) -> dict[str, str]:
    """Of Haiku's averages, the path of each `average` -> that of its `hidden`."""
    ends = {n: n.removesuffix("average") + "hidden" for n in names}
    return {n: h for n, h in ends.items() if n.endswith("/average") and h in ends}


def follow(batch: dict[str, Array], old: dict[str, Array]) -> dict[str, Array]:
    """Each `hidden` weighs as much of its new average as it did of the old one."""
    out = dict(batch)
    for average, hidden in debiased(batch).items():
        before, size = (jnp.abs(old[n]).max(initial=0) for n in (hidden, average))
        out[hidden] = batch[average] * jnp.where(size > 0, before / size, 0)
    return out
