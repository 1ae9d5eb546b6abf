"""`cutjax train`."""

from dataclasses import dataclass
from pathlib import Path

from cutjax.cli.common import accuracies, check_seed, console


@dataclass(frozen=True)
class Train:
    """Train the reference parent: four tasks on scenes of two handwritten digits.

    The digits come with scikit-learn, nothing is downloaded. One to two minutes on two
    cores, test accuracy 97-99 %. A run that was interrupted continues where it stopped
    when the same command is given again.

    Example:
      cutjax train --out runs/parent --seed 0

    Writes:
      OUT/model        the weights of the best epoch on validation (Orbax)
      OUT/train.json   accuracy per task and the history
      OUT/fit          what is needed to continue
    """

    out: Path = Path("runs/parent")
    """Folder for the parent."""
    seed: int = 0
    """Decides the scenes, the first weights and the order of the examples."""
    epochs: int = 2
    """Passes over the training scenes."""
    batch_size: int = 64
    """Examples per step."""
    scenes: int | None = None
    """Number of training scenes, 12,000 if not given."""
    progress: bool = True
    """Show progress bars."""


def run(args: Train) -> None:
    """Trains, tests, writes, prints."""
    check_seed(args.seed)
    from cutjax.cli.parent import train_parent

    record = train_parent(
        args.out,
        seed=args.seed,
        epochs=args.epochs,
        batch_size=args.batch_size,
        scenes=None if args.scenes is None else {"train": args.scenes},
        progress=args.progress,
    )
    console.print(accuracies("test accuracy, %", {"parent": record["test"]}))
    console.print(
        f"{record['params']:,} parameters, {record['seconds']:.0f} s of training; "
        f"wrote {args.out}/model and train.json",
        highlight=False,
    )
