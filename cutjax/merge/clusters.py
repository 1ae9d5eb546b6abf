"""Merging the two most similar clusters, again and again."""

import math

import numpy as np
from jaxtyping import Bool, Float, Int

from cutjax.errors import KeepError


class Clusters:
    """Clusters of channels; each sits at its first channel.

    `best`, `whom`: of each cluster, the most similar other, where not `stale`; else
    `best` is an upper bound, and computed when it is the highest.
    """

    def __init__(self, similarity: np.ndarray, n: int, width: int, budget: float):
        m, networks = len(similarity), len(similarity) // n
        self.similarity, self.width, self.budget = similarity, width, budget
        self.alive, self.size = np.ones(m, bool), np.ones(m, int)
        self.has = np.arange(m)[:, None] // n == np.arange(networks)
        self.lost = np.zeros(networks, int)
        self.best, self.whom = np.full(m, np.inf), np.zeros(m, int)
        self.stale = np.ones(m, bool)
        self.full = False

    def allowed(self, i: int) -> Bool[np.ndarray, "m"]:
        """With whom a cluster may merge."""
        ok = self.alive.copy()
        ok[i] = False
        if (shut := self.has[i] & (self.lost >= self.budget)).any():
            ok &= ~self.has[:, shut].any(1)
        return ok & ((self.size > 1) != (self.size[i] > 1)) if self.full else ok

    def pair(self) -> tuple[int, int]:
        """The two most similar clusters, first of all that are."""
        while self.stale[i := int(self.best.argmax())]:
            row = np.where(self.allowed(i), self.similarity[i], -np.inf)
            self.whom[i] = row.argmax()
            self.best[i], self.stale[i] = row[self.whom[i]], False
        return i, int(self.whom[i])

    def join(self, i: int, j: int, repeat: float) -> None:
        """Merge the second cluster into the first."""
        s, (a, b) = self.similarity, self.size[[i, j]]
        row = (a * s[i] + b * s[j]) / (a + b)
        row = np.where(row > 0, row * repeat, row)
        s[i] = s[:, i] = row
        shut = self.lost >= self.budget
        self.lost += self.has[i] & self.has[j]
        self.stale |= ((self.lost >= self.budget) > shut).any()
        self.has[i] |= self.has[j]
        self.size[i], self.alive[j] = a + b, False
        self._begun()
        self.stale |= (self.whom == i) | (self.whom == j)
        self.best[i], self.best[j], self.stale[i] = np.inf, -np.inf, True
        self._offer(i, row)

    def _begun(self) -> None:
        """Of three networks, {A, B}, {B, C} and {A, C} could never meet.

        No more clusters are begun than will be left; these then take in single
        channels, and nothing else is merged.
        """
        limited = self.has.shape[1] > 2 and not np.isinf(self.budget)
        if limited and not self.full:
            self.full = int((self.alive & (self.size > 1)).sum()) == self.width
            self.stale |= self.full

    def _offer(self, i: int, row: Float[np.ndarray, "m"]) -> None:
        """All others learn how similar a new cluster is."""
        ok = self.allowed(i)
        higher = ok & (row > self.best)
        self.best[higher], self.whom[higher] = row[higher], i
        self.stale &= ~higher
        first = ok & ~self.stale & (row == self.best) & (self.whom > i)
        self.whom[first] = i


def greedy(
    similarity: Float[np.ndarray, "m m"], n: int, width: int, beta: float, repeat: float
) -> tuple[Int[np.ndarray, "m"], Float[np.ndarray, "_"]]:
    """The first channel of each one's cluster; the similarity at each merge."""
    m = len(similarity)
    share = math.floor(beta * (m - width) * n / m + 1e-9)
    budget = math.inf if beta >= 1 else float(share)
    if width < n - budget:
        raise KeepError(
            f"width {width} of {n} with within={beta}: {n - share} is the least"
        )
    found, roots, heights = Clusters(similarity, n, width, budget), np.arange(m), []
    for _ in range(m - width):
        i, j = found.pair()
        heights.append(found.best[i])
        found.join(i, j, repeat)
        roots[roots == j] = i
    return roots, np.array(heights, np.float64)
