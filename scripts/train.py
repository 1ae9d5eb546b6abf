"""python scripts/train.py --out runs/parent   # 1-2 min on 2 cores, test 97-99 %

Trains the default parent on scenes of two digits and prints its accuracy per task. An
interrupted run continues where it stopped. Writes the parent and a JSON of the result.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

# jaxlib 0.10.2 can crash on a broadcast-multiply-reduce; must precede `import jax`.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=-reduce")

import jax
import tyro

from cutjax.data import describe, digits_scenes
from cutjax.metrics import accuracy
from cutjax.models import eval_apply
from cutjax.models.reference import BATCH_SIZE, EPOCHS, train_reference


@dataclass(frozen=True)
class Args:
    """Trains the default parent on scenes of two digits."""

    out: Path = Path("runs/parent")
    """Folder for the checkpoint and `train.json`."""
    seed: int = 0
    epochs: int = EPOCHS
    batch_size: int = BATCH_SIZE
    progress: bool = True


def main(args: Args) -> None:
    """Trains, tests, writes."""
    data = digits_scenes(args.seed)
    print(describe(data))
    model, variables, info = train_reference(
        data,
        seed=args.seed,
        epochs=args.epochs,
        batch_size=args.batch_size,
        checkpoint=args.out / "fit",
        progress=args.progress,
    )
    test = accuracy(eval_apply(model), variables, data.test)
    params = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    result = {"params": params, "seconds": info.seconds, "test": test}
    result |= {"best_epoch": info.best_epoch, "history": info.history}
    (args.out / "train.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"{params:,} parameters, {info.seconds:.0f} s of training, test accuracy:")
    print("  " + ", ".join(f"{task} {value:.2f} %" for task, value in test.items()))


if __name__ == "__main__":
    main(tyro.cli(Args))
