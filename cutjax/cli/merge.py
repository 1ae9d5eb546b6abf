"""`cutjax merge`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cutjax.cli.common import check_free, console, whole, write_json

Models = Annotated[
    tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME=MODEL ...")
]


@dataclass(frozen=True)
class Merge:
    """Make one network of several of one architecture; any subset of the tasks runs.

    Finds which channels correspond, shares them, and makes the shared kernels from
    those of all networks. Channels that are not shared stay with their network; a
    subset of the networks runs what is shared and its own. Nothing is trained and no
    label is looked at: calibration data of all networks only say how channels respond.
    Test data only measure: how often each network's answers stayed what they were.

    A MODEL is a folder that `cutjax train` wrote, or your function MODULE:FUNCTION; it
    returns a `cutjax.source.Job`, which holds the network and its data.

    Example:
      cutjax merge one=runs/one two=runs/two --layers 4 --out runs/merged
      cutjax merge age=mymodel:age smile=mymodel:smile --share zip --out runs/both

      where `cutjax train --out runs/two --seed 1` makes another network; the result is
      `merged = cutjax.cli.bundle.load("runs/merged")`, to be called as
      `merged.apply(merged.params, x)`, which answers `{"age": ..., "smile": ...}`

    Writes:
      OUT/model        the merged parameters, the sharing and the graphs (Orbax)
      OUT/merge.json   agreement, accuracy and cost, and how it was made
    """

    networks: Models = ()
    """The networks: two or more, each with a name of its own."""
    out: Path = Path("runs/merged")
    """Folder for the result."""
    share: Literal["permute", "zip", "as-is"] = "permute"
    """One channel with one of each other network; those that correlate most, also of
    one network; or by position."""
    align: Literal["auto", "activations", "weights", "none"] = "auto"
    """What channels are compared by; auto: activations, and none for as-is."""
    method: Literal["average", "mtz", "least-squares"] = "least-squares"
    """How shared kernels are made: means of the weights; means weighed by what each
    network reads; fitted, layer by layer, to what the networks compute."""
    layers: Annotated[str, tyro.conf.arg(metavar="all|K|GROUP,...")] = "all"
    """Channel groups that are shared: all, the first K, or these (any unique ending of
    a name that `cutjax trace` prints)."""
    calibration: int = 512
    """Examples to compare channels and to fit kernels on, of all networks alike."""
    damping: float | None = None
    """Ridge of mtz and least-squares; None: chosen by data held out."""
    seed: int = 0
    """Decides the calibration examples."""
    overwrite: bool = False
    """Replace OUT if it exists."""
    progress: bool = True
    """Show progress bars."""


def run(args: Merge) -> None:
    """Merges, measures, writes, prints."""
    check_free(args.out, overwrite=args.overwrite)
    from cutjax.cli import bundle, compare, options, union

    settings = options.checked(args)
    jobs = {name: options.job_of(name, m) for name, m in settings.models.items()}
    made = union.merge(jobs, settings)
    found = compare.measured(jobs, made)
    record = {"made": _made(args, settings.models), **found}
    with whole(args.out, overwrite=args.overwrite) as folder:
        bundle.save(
            folder,
            *(made.merged, made.networks, made.sharing),
            models=settings.models,
            provenance={"made": record["made"]},
        )
        write_json(folder / "merge.json", record)
    console.print(_answers(found["tasks"]))
    console.print(_costs(found["subsets"]))
    console.print(_sizes(found["params"]), highlight=False)
    print(f"wrote {args.out}/model and merge.json")


def _made(args: Merge, models: Mapping[str, str]) -> dict[str, Any]:
    said = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(args).items()}
    return {**said, "networks": dict(models)}


def _answers(rows: Sequence[Mapping[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("task", title="on test data of each network", title_justify="left")
    for heading in ("agreement, %", "accuracy, %", "merged", "loss", "merged"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["task"],
            _number(row["agreement"], 2),
            *(_number(row[key], 2) for key in ("accuracy_alone", "accuracy")),
            *(_number(row[key], 4) for key in ("loss_alone", "loss")),
        )
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _costs(rows: Sequence[Mapping[str, Any]]) -> Any:
    from rich.table import Table

    title = "what a subset runs, against one network"
    table = Table("networks", title=title, title_justify="left")
    for heading in ("multiply-adds", "of one", "side by side", "parameters"):
        table.add_column(heading, justify="right")
    for row in rows:
        shares = (f"{row[key]:.2f}x" for key in ("of_one", "side_by_side"))
        counts = f"{row['flops'] // 2:,}", f"{row['params']:,}"
        table.add_row(" ".join(row["networks"]), counts[0], *shares, counts[1])
    return table


def _sizes(params: Mapping[str, Any]) -> str:
    own = ", ".join(f"{count:,} of {name}" for name, count in params["own"].items())
    share = 100 * params["total"] / params["separate"]
    return (
        f"parameters: {params['shared']:,} shared, own {own}; {params['total']:,} in "
        f"all, {share:.0f} % of the {params['separate']:,} of the separate networks"
    )
