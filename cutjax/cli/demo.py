"""`cutjax demo`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Demo:
    """The main job, end to end: one parent cut for two subsets of its tasks, every way.

    Trains the reference parent unless it is there, cuts it by several recipes at two
    budgets, measures accuracy and latency, and prints a table.

    Example:
      cutjax demo --out runs/demo --seeds 3

    Writes:
      OUT/results.json   one row per recipe, subset, budget and seed
      OUT/../parent      the parent, to be used again
    """

    out: Path = Path("runs/demo")
    """Folder for the results."""
    seeds: int = 3
    """Repetitions of every cut, for means and spreads."""
    progress: bool = True
    """Show progress bars."""


def run(args: Demo) -> None:
    """Runs it; the demo prints and writes."""
    from cutjax.demo import demo
    from cutjax.errors import DataError

    if args.seeds < 1:
        raise DataError(f"--seeds {args.seeds}: at least 1")
    demo(args.out, seeds=args.seeds, progress=args.progress)
