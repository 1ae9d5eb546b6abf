"""The page's tables: methods by budgets, and what fewer tasks pay."""

from collections import Counter
from collections.abc import Callable

from studies.figures import (
    Figure,
    Level,
    Tasks,
    level,
    mean_lost,
    subsets_of,
    worst_lost,
)
from studies.grid import TASKS
from studies.methods import Method, label

PARTS = {
    "fuse": "Fusion over tasks",
    "normalize": "Normalisation of groups",
    "allocate": "Widths",
}


def varied(figures: list[Figure], field: str) -> list[Figure]:
    """Figures of methods that differ from the plain one in this field, or not at all.

    Only of criteria that have several of them. What is divided by cost belongs to one
    threshold for all, another way to find widths.
    """

    def plain(method: Method) -> Method:
        fields = [field]
        if field == "allocate" and method.normalize == "per_cost":
            fields.append("normalize")
        empty = Method(method.criterion)
        return method._replace(**{name: getattr(empty, name) for name in fields})

    kept = [
        f
        for f in figures
        if plain(f.method)._replace(compensate=False) == Method(f.method.criterion)
    ]
    methods: dict[str, set[Method]] = {}
    for f in kept:
        methods.setdefault(f.method.criterion, set()).add(f.method)
    return [f for f in kept if len(methods[f.method.criterion]) > 2]


def levels(title: str, figures: list[Figure]) -> str:
    """Methods by budgets: points lost in the mean and by the worst task."""
    subsets = subsets_of(figures)
    if not subsets:
        return ""
    text = [f"### {title}", "", _about(subsets), ""]
    for name, value in (("mean over tasks", mean_lost), ("worst task", worst_lost)):
        text += [_table(name, figures, subsets, value), ""]
    return "\n".join(text)


def _about(subsets: list[Tasks]) -> str:
    names = "; ".join("all tasks" if len(s) > 3 else " + ".join(s) for s in subsets)
    over = (
        f"Points lost, mean over {len(subsets)} subsets of tasks"
        if (len(subsets) > 1)
        else "Points lost"
    )
    return f"{over} ({names})."


def _table(
    name: str,
    figures: list[Figure],
    subsets: list[Tasks],
    value: Callable[[Figure], float],
) -> str:
    """The best of a budget is bold, methods go by their mean over budgets."""
    cells: dict[Method, dict[float, Level]] = {}
    for method, budget in dict.fromkeys((f.method, f.budget) for f in figures):
        chosen = [f for f in figures if (f.method, f.budget) == (method, budget)]
        found = level(chosen, subsets, value)
        if found:
            cells.setdefault(method, {})[budget] = found
    counts = Counter(budget for row in cells.values() for budget in row)
    # A budget that some cannot meet stays; one that few were asked for does not.
    often = [b for b, n in counts.items() if 3 * n >= 2 * len(cells)]
    budgets = sorted(often or counts, reverse=True)
    best = {b: min(row[b].mean for row in cells.values() if b in row) for b in budgets}

    def rank(method: Method) -> float:
        row = cells[method]
        return sum(row[b].mean if b in row else 100.0 for b in budgets)

    lines = [f"| {name} | " + " | ".join(f"{b:g}" for b in budgets) + " |"]
    lines.append("|---|" + "---:|" * len(budgets))
    for method in sorted(cells, key=rank):
        row = [_cell(cells[method].get(b), best[b]) for b in budgets]
        lines.append(f"| {label(method)} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def _cell(found: Level | None, best: float) -> str:
    if found is None:
        return "–"
    text = f"{found.mean:.1f}"
    text = f"**{text}**" if found.mean <= best + 1e-9 else text
    return f"{text} ± {found.spread:.1f}" if found.spread >= 0.05 else text


def fewer(data: str, figures: list[Figure]) -> str:
    """What a task keeps when it is cut for alone, and when all are."""
    whole = TASKS[data]
    lines = []
    for stage in ("cut", "compensated", "distilled"):
        here = [f for f in figures if f.stage == stage]
        for method in dict.fromkeys(f.method for f in here):
            mine = [f for f in here if f.method == method]
            alone = {f.tasks[0] for f in mine if len(f.tasks) == 1}
            if alone >= set(whole) and method.criterion != "random":
                lines += _fewer_lines(stage, method, mine, whole)
    if not lines:
        return ""
    head = "| stage | method | budget | " + " | ".join(whole) + " |"
    return "\n".join(
        [
            *("### Fewer tasks pay", ""),
            "Points that a task loses, cut for alone → cut for all tasks together, at "
            "the same budget.",
            *("", head, "|---|---|---:|" + "---:|" * len(whole), *lines, ""),
        ]
    )


def _fewer_lines(
    stage: str, method: Method, figures: list[Figure], whole: Tasks
) -> list[str]:
    out = []
    for budget in sorted({f.budget for f in figures}, reverse=True):
        cells = []
        for task in whole:
            here = [f for f in figures if f.budget == budget]
            alone = level(here, [(task,)], lambda f, t=task: f.lost[t])
            both = level(here, [whole], lambda f, t=task: f.lost[t])
            known = alone is not None and both is not None
            cells.append(f"{alone.mean:.1f} → {both.mean:.1f}" if known else "–")
        if set(cells) != {"–"}:
            row = " | ".join(cells)
            out.append(f"| {stage} | {label(method)} | {budget:g} | {row} |")
    return out
