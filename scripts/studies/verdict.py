"""Does the default win? Decided by the program, from the figures, seed by seed."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from studies.figures import Figure, Level, Tasks, level, mean_lost, worst_lost
from studies.methods import AT_STAKE, BASELINES, CONTROL, DEFAULT, Method


class Duel(NamedTuple):
    """The default against one method, in one measure: how many points it keeps more."""

    data: str
    when: str
    budget: float
    tasks: Tasks
    measure: str
    rival: str
    default: Level
    other: Level

    @property
    def margin(self) -> float:
        """Points that the rival loses beyond the default."""
        return self.other.mean - self.default.mean

    @property
    def spread(self) -> float:
        """The standard deviation over seeds of the difference, as if independent."""
        return math.hypot(self.default.spread, self.other.spread)

    @property
    def said(self) -> str:
        """`wins` and `loses` are beyond the spread; one seed decides nothing."""
        if min(len(self.default.seeds), len(self.other.seeds)) < 2:
            return "undecided"
        if self.margin > self.spread:
            return "wins"
        return "loses" if -self.margin > self.spread else "undecided"


MEASURES: dict[str, Callable[[Figure], float]] = {
    "mean": mean_lost,
    "worst task": worst_lost,
}

WHENS: dict[str, tuple[str, str, bool]] = {
    "before fine-tuning, each as it is": ("compensated", "cut", False),
    "before fine-tuning, all compensated": ("compensated", "compensated", True),
    "after fine-tuning": ("distilled", "distilled", False),
}
"""Stage of the default, stage of its rivals, whether these are compensated too."""


def duels(figures: Iterable[Figure]) -> list[Duel]:
    """Every comparison at the budgets at stake that the figures allow."""
    figures, out = list(figures), []
    for data in dict.fromkeys(f.data for f in figures):
        for when, (stage, rival_stage, compensated) in WHENS.items():
            rivals: dict[str, Method] = {
                name: method._replace(compensate=compensated)
                for name, method in BASELINES.items()
            }
            if stage == "distilled":
                rivals["new weights"] = CONTROL
            for budget in AT_STAKE[data]:
                here = [f for f in figures if (f.data, f.budget) == (data, budget)]
                ours = [f for f in here if (f.stage, f.method) == (stage, DEFAULT)]
                for tasks in dict.fromkeys(f.tasks for f in ours):
                    for rival, method in rivals.items():
                        theirs = [
                            f
                            for f in here
                            if (f.stage, f.method) == (rival_stage, method)
                        ]
                        for measure, value in MEASURES.items():
                            a = level(ours, (tasks,), value)
                            b = level(theirs, (tasks,), value)
                            if a and b:
                                out.append(
                                    Duel(
                                        *(data, when, budget, tasks),
                                        *(measure, rival, a, b),
                                    )
                                )
    return out


def tally(found: Iterable[Duel]) -> dict[str, int]:
    """How many were won, undecided, lost."""
    out = dict.fromkeys(("wins", "undecided", "loses"), 0)
    for duel in found:
        out[duel.said] += 1
    return out
