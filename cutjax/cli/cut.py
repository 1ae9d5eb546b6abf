"""`cutjax cut`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cutjax.cli.common import (
    accuracies,
    check_free,
    check_seed,
    console,
    cost_record,
    whole,
    write_json,
)

Share = Annotated[float | None, tyro.conf.arg(metavar="SHARE|NUMBER")]
# Spelled out, so that `--help` need not import jax; a test compares them.
Criterion = Literal[
    "joint",
    "gram",
    "taylor",
    "taylor_squared",
    "taylor_signed",
    "fisher",
    "hessian",
    "cut",
    "snip",
    "grasp",
    "cosprune",
    "l1",
    "l2",
    "linf",
    "bn_scale",
    "lamp",
    "fpgm",
    "mean_activation",
    "zero_rate",
    "wanda",
    "mutual_information",
    "random",
    "reconstruction",
]
Normalize = Literal[
    "none",
    "mean",
    "largest",
    "total",
    "length",
    "standard",
    "isomorphic",
]
Fuse = Literal[
    "mean",
    "union",
    "majority",
    "intersection",
    "maximum",
    "minimum",
    "geometric",
    "worst_case",
]
Allocate = Literal["greedy", "nested", "threshold", "uniform", "isomorphic"]


@dataclass(frozen=True)
class Cut:
    """Cut a model to a budget, for the tasks that a device needs.

    Scores channels on calibration data, plans widths, cuts, refits every reader in
    closed form, then distils from the full model on training data; the best epoch on
    validation stays. Test data only measure: accuracy per task before and after.

    Example:
      cutjax cut --parent runs/parent --tasks left larger --params 0.32 --out runs/cut
      cutjax cut --source mymodel:job --flops 0.5 --finetune-epochs 0 --out runs/mine

    Writes:
      OUT/model      the compact model, for cutjax.checkpoint.load (Orbax)
      OUT/cut.json   budget, widths, cost and accuracies
    """

    out: Path = Path("runs/cut")
    """Folder for the result."""
    parent: Path = Path("runs/parent")
    """Folder that `cutjax train` wrote."""
    source: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """Instead of --parent: your own function; it returns a `cutjax.source.Job`."""
    tasks: tuple[str, ...] = ()
    """The tasks that the device needs; all if not given."""
    params: Share = None
    """Parameters that may be left: a share of the full model's, or a number above 1."""
    flops: Share = None
    """FLOPs that may be left, likewise; given limits hold together."""
    multiple: int = 8
    """Kept widths are multiples of this, or whole."""
    criterion: Criterion = "joint"
    """How channels are scored: a name of `cutjax.criteria`."""
    normalize: Normalize = "none"
    """How groups are made comparable: a name of `cutjax.normalize`."""
    fuse: Fuse = "mean"
    """How the tasks' scores become one: a name of `cutjax.fuse`, or the worst case."""
    allocate: Allocate = "greedy"
    """How the budget is divided between groups."""
    calibration: int = 512
    """Examples to score on and to compensate with."""
    damping: float | None = None
    """Ridge of the closed-form compensation; None: chosen by data held out."""
    finetune_epochs: int = 1
    """Epochs of distillation; 0 for none."""
    learning_rate: float = 1e-3
    """Peak learning rate of the distillation."""
    seed: int = 0
    """Decides the calibration examples, random scores and the order of distillation."""
    overwrite: bool = False
    """Replace OUT if it exists."""
    progress: bool = True
    """Show progress bars."""


def run(args: Cut) -> None:
    """Cuts, writes, prints."""
    check_free(args.out, overwrite=args.overwrite)
    check_seed(args.seed)
    from cutjax import checkpoint
    from cutjax.cli import recipe
    from cutjax.cli.parent import load_job

    settings = recipe.checked(args)
    job = load_job(args.source, args.parent)
    result = recipe.compact(job, settings)
    record = _record(args, result)
    with whole(args.out, overwrite=args.overwrite) as folder:
        checkpoint.save(
            folder / "model",
            result.params,
            graph=result.graph,
            keep=result.keep,
            tasks=result.info.tasks,
            provenance=record["made"],
        )
        write_json(folder / "cut.json", record)
    console.print(accuracies("test accuracy, %", result.test))
    print(result.info)
    print(f"wrote {args.out}/model and cut.json")


def _record(args: Cut, result: Any) -> dict[str, Any]:
    """What `cut.json` holds."""
    from cutjax.cli.parent import read_record

    made = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(args).items()}
    made["parent"] = None if args.source else str(args.parent.absolute())
    scenes = None if args.source else read_record(args.parent)["scenes"]
    full, small = result.info.full, result.info.cost
    return {
        "made": made,
        "scenes": scenes,
        "tasks": list(result.info.tasks),
        "cost": {"full": cost_record(full), "compact": cost_record(small)},
        "widths": {name: list(pair) for name, pair in result.info.widths.items()},
        "test": result.test,
        "seconds": result.seconds,
        "history": result.history,
    }
