"""How little the channels of networks tell about each task: the evidence of `regroup`.

Channels join the set S_t of those irrelevant to task t one by one; the level of a
channel is the threshold alpha from which on it belongs to that set.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from cutjax.errors import DataError, suggest
from cutjax.given import said
from cutjax.merge.informed import Growth, information
from cutjax.merge.permute import Permutation
from cutjax.saliency.criterion import Scores

Levels = dict[str, Float[np.ndarray, "t n"]]
"""By group: of each task and channel, the alpha from which on it is irrelevant."""


def by_information(
    activations: Mapping[str, Mapping[str, Float[np.ndarray, "_ n"]]],
    labels: Mapping[str, Shaped[np.ndarray, "_ *b"]],
    permutations: Mapping[str, Permutation],
    *,
    examples: int = 128,
    variance: float = 0.1,
) -> Levels:
    """Levels of aligned channels by mutual information with each network's labels.

    Args:
        activations: by group and network, of the same examples as its labels.
        labels: by network, which is its task.
        permutations: by network, as `align_all` finds them; what is not named stays.
        examples: how many to look at, the first of the data.
        variance: see `information`.

    Returns:
        By group [networks, n], networks in the order of `labels`.

    Raises:
        DataError: see `information`; or a network that is missing.

    Example:
        >>> x, y = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]), np.array([0, 0, 1, 1])
        >>> orders = {"two": {"g": np.array([1, 0])}}
        >>> given = {"g": {"one": x, "two": x}}
        >>> found = by_information(given, {"one": y, "two": y}, orders)
        >>> (found["g"] > 0.1).tolist()
        [[True, False], [False, True]]

    Reference:
        He et al., Pruning-Aware Merging, KDD 2021, section 4.2.
    """
    out = {}
    for group, found in activations.items():
        rows = {}
        for name, y in labels.items():
            x = np.asarray(_get(found, name, group), np.float64)[:examples]
            rows[name] = information(x, y[:examples], variance).levels
        out[group] = _aligned(group, rows, permutations)
    return out


def by_scores(
    scores: Mapping[str, Scores], permutations: Mapping[str, Permutation]
) -> Levels:
    """Levels of aligned channels by the scores of each network, such as its gradients.

    Args:
        scores: by network, which is its task, and group; see `saliency`.
        permutations: by network, as `align_all` finds them; what is not named stays.

    Returns:
        By group [networks, n], networks in the order of `scores`: the share of the
        group's score that a channel holds with all before it, by rising score.

    Raises:
        DataError: scores that are negative or not finite, missing, of another number
            of channels, or by task.

    Example:
        >>> scores = {"one": {"g": np.array([2.0, 1, 1])}}
        >>> by_scores(scores, {})["g"].tolist()
        [[1.0, 0.25, 0.5]]
    """
    for name, found in scores.items():
        for task, inner in found.items():
            if isinstance(inner, Mapping):
                raise DataError(
                    f"scores of {name!r} hold scores by task, of {task!r}; pass those "
                    f"of one task: {{{name!r}: saliency(...)[{task!r}]}}"
                )
    out = {}
    for group in next(iter(scores.values()), {}):
        rows = {t: _shares(_get(s, group, t), group) for t, s in scores.items()}
        out[group] = _aligned(group, rows, permutations)
    return out


def _get(found: Mapping[str, Any], name: str, of: str) -> Any:
    if name not in found:
        raise DataError(f"nothing about {name!r} for {of!r}; {suggest(name, found)}")
    return found[name]


def _shares(given: Float[np.ndarray, "n"], group: str) -> Float[np.ndarray, "n"]:
    values = np.asarray(given, np.float64)
    if not np.isfinite(values).all() or (values < 0).any():
        raise DataError(f"scores of {group!r} are negative or not finite")
    order = np.argsort(values, kind="stable")
    return Growth(order, values[order].cumsum() / (values.sum() or 1.0)).levels


def _aligned(
    group: str,
    rows: Mapping[str, Float[np.ndarray, "n"]],
    permutations: Mapping[str, Permutation],
) -> Float[np.ndarray, "t n"]:
    found = {t: permutations.get(t, {}).get(group) for t in rows}
    sizes = [len(order) for order in found.values() if order is not None]
    n = (*sizes, *map(len, rows.values()))[0]
    for t, row in rows.items():
        if row.shape != (n,):
            raise DataError(
                f"{group!r} of {t!r} has {said(row)}, a value for each of so many "
                f"channels; the group has {n}"
            )
    return np.stack([r if found[t] is None else r[found[t]] for t, r in rows.items()])
