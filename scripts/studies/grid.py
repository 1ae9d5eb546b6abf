"""Which cells the study consists of, and in which order they are worked off."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from studies import methods
from studies.methods import BASELINES, CONTROL, DEFAULT, SUBSETS, Method

TASKS = {
    "set_cards": ("number", "color", "shading", "shape"),
    "morpho": ("digit", "thickness", "slant", "width"),
    "digits": ("left", "right", "larger", "sum_parity"),
}
WEIGHTS = {"cut": 1.0, "compensated": 8.0, "distilled": 16.0}


class Cell(NamedTuple):
    """One figure of the study: a method at a budget for some tasks, and a seed.

    `stage`: "cut" (masked, no recovery), "compensated" or "distilled".
    """

    data: str
    stage: str
    method: Method
    tasks: tuple[str, ...]
    budget: float
    seed: int

    @property
    def key(self) -> str:
        """Names the cell in the results."""
        tasks = ",".join(self.tasks)
        method = "/".join(str(part) for part in self.method)
        return f"{self.data}|{self.stage}|{method}|{tasks}|{self.budget:g}|{self.seed}"


def cells(data: str, *, size: str) -> list[Cell]:
    """The cells of a data set; `size` is "quick", "default" or "full"."""
    found = dict.fromkeys(
        Cell(data, stage, method, tasks, budget, seed)
        for stage, method, tasks, budget in _rows(data, size)
        for seed in seeds(size)
    )
    return list(found)


def seeds(size: str) -> tuple[int, ...]:
    """Samples of calibration data, and orders of fine-tuning."""
    return methods.SEEDS[:1] if size == "quick" else methods.SEEDS


def units(todo: Iterable[Cell]) -> list[list[Cell]]:
    """Cells that differ only by their seed, together: they may choose the same."""
    found: dict[Cell, list[Cell]] = {}
    for cell in todo:
        found.setdefault(cell._replace(seed=0), []).append(cell)
    return list(found.values())


Plan = Iterator[tuple[str, Method, tuple[str, ...], float]]


def _rows(data: str, size: str) -> Plan:
    if size == "quick":
        yield from _quick(data)
        return
    # What decides most comes first: a study that is stopped has said the most.
    yield from _distilled(data, full=size == "full")
    yield from _compensated(data, full=size == "full")
    yield from _before(data, full=size == "full")
    yield from _parts(data, full=size == "full")


def _quick(data: str) -> Plan:
    tasks, budget = TASKS[data], methods.AT_STAKE[data][0]
    for name in ("joint", "taylor", "l1", "random"):
        yield "cut", Method(name), tasks, budget
        yield "cut", Method(name), SUBSETS[data][0], budget
    yield "cut", Method("joint", fuse="union"), tasks, budget
    yield "cut", Method("joint", allocate="uniform"), tasks, budget
    for method in (DEFAULT, BASELINES["random"]._replace(compensate=True)):
        yield "compensated", method, tasks, budget
    for method in (DEFAULT, CONTROL, BASELINES["random"]):
        yield "distilled", method, tasks, budget


def _before(data: str, *, full: bool) -> Plan:
    """Criteria by budgets and subsets."""
    tasks, (_, pair) = TASKS[data], SUBSETS[data]
    subsets = [*((t,) for t in tasks), pair, tasks]
    for name in methods.CRITERIA:
        # Fewer tasks must pay for what is used; other criteria get all tasks.
        every = full or name in ("joint", "taylor", "random")
        for subset in subsets if every else (tasks,):
            for budget in methods.BUDGETS:
                yield "cut", Method(name), subset, budget


def _variants(name: str) -> tuple[Method, ...]:
    """Fusions, normalisations and allocations of a criterion, one at a time."""
    found = (
        *(Method(name, fuse=fuse) for fuse in methods.FUSIONS),
        *(Method(name, normalize=by) for by in methods.NORMALIZERS),
        *(Method(name, allocate=by) for by in methods.ALLOCATORS),
        Method(name, normalize="per_cost", allocate="threshold"),
    )
    return tuple(dict.fromkeys(found))


def _parts(data: str, *, full: bool) -> Plan:
    """The parts of a method: cut only for two criteria, compensated for the default."""
    tasks, (_, pair) = TASKS[data], SUBSETS[data]
    subsets = (pair, tasks) if full else (tasks,)
    for subset in subsets:
        for method in (*_variants("joint"), *_variants("taylor")):
            for budget in methods.BUDGETS if full else methods.CUT_AT[data]:
                yield "cut", method, subset, budget
        for method in _variants(DEFAULT.criterion):
            for budget in methods.AT_STAKE[data][: None if full else 1]:
                yield "compensated", method._replace(compensate=True), subset, budget
    for subset in (pair, tasks):
        for method in BASELINES.values():
            for budget in methods.BUDGETS if full else methods.AT_STAKE[data]:
                yield "cut", method, subset, budget


def _compensated(data: str, *, full: bool) -> Plan:
    """Criteria after compensation; fewer tasks pay then, too."""
    tasks, (_, pair) = TASKS[data], SUBSETS[data]
    at = methods.AT_STAKE[data]
    for budget in methods.BUDGETS[2:] if full else at:
        for method in methods.COMPENSATED:
            yield "compensated", method, tasks, budget
        for method in methods.COMPENSATED if full else (DEFAULT,):
            yield "compensated", method, pair, budget
    for task in tasks:
        for budget in at:
            yield "compensated", DEFAULT, (task,), budget


def _distilled(data: str, *, full: bool) -> Plan:
    tasks, (one, pair) = TASKS[data], SUBSETS[data]
    chosen = (DEFAULT, *BASELINES.values(), CONTROL)
    # With compensation before it, what does the choice of channels still matter?
    helped = tuple(BASELINES[n]._replace(compensate=True) for n in ("random", "taylor"))
    for subset in (tasks, pair, one) if full else (tasks,):
        for budget in methods.AT_STAKE[data]:
            least = subset == tasks and budget == methods.AT_STAKE[data][-1]
            for method in chosen + helped * (full or least):
                yield "distilled", method, subset, budget
