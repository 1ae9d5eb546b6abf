"""Going down and up the ladders of widths, always where it pays most.

Prices are kept in a heap and renewed when they come up. Going down, savings only shrink
as other groups narrow, so an old price is a lower bound; going up, costs only grow, so
an old worth is an upper bound, and what does not fit will never fit. Hence the heap
finds the true best at every step.
"""

import heapq
import math
from collections.abc import Collection, Iterable

from cutjax.allocate.base import Problem
from cutjax.allocate.meter import Meter


class Steps:
    """Where each group stands on its ladder, and what that costs and keeps."""

    def __init__(self, p: Problem, like: "Steps | None" = None):
        self.p = p
        self.looked = 0
        if like is None:
            self.meter = Meter(p.graph, p.tasks, p.keys)
            self.at = dict.fromkeys(p.ladders, 0)
            self.gone: frozenset[str] = frozenset()
            self.score = p.score(self.meter.widths)
        else:
            self.meter, self.at = like.meter.copy(), dict(like.at)
            self.gone, self.score = like.gone, like.score

    @property
    def widths(self) -> dict[str, int]:
        """The width of every group that may be cut."""
        return {name: self.meter.widths[name] for name in self.at}

    def above(self) -> list[int]:
        """The limits, by number, that are not met."""
        pairs = zip(self.meter.amounts, self.p.limits, strict=True)
        return [i for i, (n, most) in enumerate(pairs) if n > most]

    def allowed(self, name: str, rung: int) -> bool:
        """Whether a group may stand there: on its ladder, no task without a path."""
        ladder = self.p.ladders[name]
        if not 0 <= rung < len(ladder):
            return False
        return ladder[rung] > 0 or self.p.may_go(self.gone | {name})

    def move(self, name: str, rung: int) -> None:
        """Put a group on another rung."""
        gain, width = self.p.gain[name], self.p.ladders[name][rung]
        self.score += gain[width] - gain[self.meter.widths[name]]
        self.meter.set(name, width)
        self.at[name] = rung
        self.gone = self.gone - {name} if width else self.gone | {name}

    def price(self, name: str, counted: Iterable[int]) -> float:
        """Score lost per unit saved one rung further down."""
        self.looked += 1
        p, gain = self.p, self.p.gain[name]
        below = p.ladders[name][self.at[name] + 1]
        saved = self.meter.saved(name, below)
        unit = 0.0
        for i in counted:
            unit += saved[i] / p.full[i]
        loss = gain[self.meter.widths[name]] - gain[below]
        return loss / unit if unit > 0 else math.inf

    def worth(self, name: str) -> float | None:
        """Score won per unit spent one rung further up; None if that does not fit."""
        self.looked += 1
        p, gain = self.p, self.p.gain[name]
        above = p.ladders[name][self.at[name] - 1]
        saved = self.meter.saved(name, above)
        unit = 0.0
        for i, (less, now) in enumerate(zip(saved, self.meter.amounts, strict=True)):
            if now - less > p.limits[i]:
                return None
            unit -= less / p.full[i]
        won = gain[above] - gain[self.meter.widths[name]]
        return won / unit if unit > 0 else math.inf


def down(
    steps: Steps, *, locked: Collection[str] = (), fixed_unit: bool = False
) -> bool:
    """Give up what costs the least score per unit saved, until all limits are met.

    Args:
        steps: moved in place.
        locked: groups that stay where they are.
        fixed_unit: a unit counts all limits, met or not, so that the way down does not
            depend on the budget; otherwise those not met.

    Returns:
        Whether the limits are met.
    """
    names = [name for name in steps.at if name not in locked]
    above = steps.above()

    def heap_of(some: Iterable[int]) -> list[tuple[float, int]]:
        counted = range(len(steps.p.keys)) if fixed_unit else above
        out = [
            (steps.price(names[i], counted), i)
            for i in some
            if steps.allowed(names[i], steps.at[names[i]] + 1)
        ]
        heapq.heapify(out)
        return out

    heap = heap_of(range(len(names)))
    while above and heap:
        _, i = heapq.heappop(heap)
        name = names[i]
        if not steps.allowed(name, steps.at[name] + 1):
            continue
        counted = range(len(steps.p.keys)) if fixed_unit else above
        now = steps.price(name, counted)
        if heap and now > heap[0][0]:
            heapq.heappush(heap, (now, i))
            continue
        if math.isinf(now):
            return False
        steps.move(name, steps.at[name] + 1)
        left = steps.above()
        if left != above and not fixed_unit:
            # Units changed: prices of the old ones are bounds no more.
            above = left
            heap = heap_of({i, *(j for _, j in heap)})
            continue
        above = left
        if steps.allowed(name, steps.at[name] + 1):
            heapq.heappush(heap, (steps.price(name, counted), i))
    return not above


def up(steps: Steps, *, locked: Collection[str] = ()) -> None:
    """Take back what fits, that which wins the most score per unit first.

    Args:
        steps: moved in place.
        locked: groups that stay where they are.
    """
    heap = []
    names = [name for name in steps.at if name not in locked]
    for i, name in enumerate(names):
        if steps.at[name] > 0 and (worth := steps.worth(name)) is not None:
            heap.append((-worth, i))
    heapq.heapify(heap)
    while heap:
        _, i = heapq.heappop(heap)
        name = names[i]
        now = steps.worth(name)
        if now is None:
            continue
        if heap and -now > heap[0][0]:
            heapq.heappush(heap, (-now, i))
            continue
        steps.move(name, steps.at[name] - 1)
        if steps.at[name] > 0 and (worth := steps.worth(name)) is not None:
            heapq.heappush(heap, (-worth, i))
