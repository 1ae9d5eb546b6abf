"""Workers: a process per core, each with one thread of XLA; rows are written here.

XLA's convolutions use a second core badly and compiling uses one: two processes do
nearly twice the work of one. Where JAX finds a GPU there is one worker.
"""

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from studies import store
from studies.grid import WEIGHTS, Cell, units

Job = tuple[float, Callable[[], list[dict[str, Any]]]]
BAR = "{desc}: {percentage:3.0f}% |{bar}| {elapsed} passed, {remaining} left{postfix}"


def work(
    todo: dict[str, list[Cell]],
    known: list[str],
    results: Path,
    *,
    workers: int | None,
    seeds: tuple[int, ...],
) -> None:
    """Works off cells and appends their rows.

    Args:
        todo: cells by data set.
        known: data sets whose parent has its row.
        results: the file of rows.
        workers: processes; default: one per core, or one where there is a GPU.
        seeds: of the samples of calibration data to score.
    """
    root = results.parent
    total = sum(WEIGHTS[c.stage] for cells in todo.values() for c in cells)
    with tqdm(total=total, bar_format=BAR) as bar:
        for name, cells in todo.items():
            if not cells:
                continue
            bar.set_description(f"{name}: parent")
            run_alone(train, name, root)
            with executor(count(workers)) as pool:
                bar.set_description(f"{name}: scores")
                made = [pool.submit(measure, name, root, seed) for seed in seeds]
                if name not in known:
                    made.append(pool.submit(parent_row, name, root))
                for future in made:
                    for row in future.result():
                        store.append(results, row)
                finish(pool, cells, results, bar, ahead=2 * count(workers))


def finish(
    pool: Any, cells: list[Cell], results: Path, bar: Any, *, ahead: int
) -> None:
    """All cells of a data set, in order; so many units are handed out at a time."""
    waiting = iter(units(cells))
    running: dict[Future, list[Cell]] = {}
    while True:
        for group in first(waiting, ahead - len(running)):
            running[pool.submit(figures, group, results.parent)] = group
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            group = running.pop(future)
            for row in future.result():
                store.append(results, row)
            bar.set_description(f"{group[0].data}: {group[0].stage}")
            bar.update(sum(WEIGHTS[cell.stage] for cell in group))


def first(items: Iterator[Any], n: int) -> Iterator[Any]:
    """At most `n` of them."""
    for _, item in zip(range(n), items, strict=False):
        yield item


def run_alone(job: Callable[..., Any], *args: Any) -> None:
    """In a process of its own that may use all cores and leaves nothing behind."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
        one.submit(job, *args).result()


def count(workers: int | None) -> int:
    """One per core, if not given; one where there is a GPU."""
    return workers or (1 if has_gpu() else min(len(os.sched_getaffinity(0)), 8))


def executor(number: int) -> ProcessPoolExecutor:
    """Processes with one thread of XLA each; one process with all of a GPU."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(number, context, initializer=alone, initargs=(number,))


@functools.cache
def has_gpu() -> bool:
    """Whether JAX finds one; asked in another process, which then frees it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
        return one.submit(backend).result() != "cpu"


def backend() -> str:
    """What JAX computes on."""
    import jax

    return jax.default_backend()


def alone(workers: int) -> None:
    """Before JAX starts in a worker: its share of the cores."""
    if workers > 1:
        os.environ["NPROC"] = "1"


def cached(root: Path) -> None:
    """Programs are kept on disk: equal widths are compiled once, in any worker."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(root / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def train(name: str, root: Path) -> None:
    """The parent, trained or found trained."""
    from studies import work

    work.parent(name, root)


def measure(name: str, root: Path, seed: int) -> list[dict[str, Any]]:
    """Scores of all criteria."""
    from studies import work

    cached(root)
    found = work.scored(name, root, seed)
    if not found["seconds"]:
        return []
    return [{"key": f"{name}|scores|{seed}", "data": name, "seed": seed, **found}]


def parent_row(name: str, root: Path) -> list[dict[str, Any]]:
    """The parent's own figures."""
    from studies import work

    cached(root)
    return [
        {"key": f"{name}|parent", "data": name, "stage": "parent"}
        | work.reference(name, root)
    ]


def figures(cells: list[Cell], root: Path) -> list[dict[str, Any]]:
    """Rows of a unit of cells."""
    from studies import work

    cached(root)
    return work.unit(cells, root)
