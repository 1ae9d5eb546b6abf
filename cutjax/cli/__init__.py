"""The command `cutjax`: train, trace, cut, merge, bench, demo.

A file per command holds its arguments, whose docstring is the help text, and `run`.
What takes long to import is imported by `run`: `--help` does not wait for it.
"""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Union, cast

import tyro

from cutjax.cli import bench, cut, demo, merge, trace, train
from cutjax.cli.common import complaint, quiet

COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "train": (train.Train, train.run),
    "trace": (trace.Trace, trace.run),
    "cut": (cut.Cut, cut.run),
    "merge": (merge.Merge, merge.run),
    "bench": (bench.Bench, bench.run),
    "demo": (demo.Demo, demo.run),
}

DESCRIPTION = """cutjax makes JAX models smaller: train, trace, cut, merge, bench.

  cutjax train --out runs/parent
  cutjax trace
  cutjax cut --parent runs/parent --tasks left larger --params 0.32 --out runs/cut
  cutjax merge one=runs/one two=runs/two --layers 4 --out runs/merged
  cutjax bench runs/parent runs/cut

`cutjax COMMAND --help` explains a command and its options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: its words; those of the process if not given.

    Returns:
        The exit code: 0, or 2 where the input was wrong, said in a paragraph on stderr.
    """
    # jaxlib 0.10.2 can crash on a broadcast-multiply-reduce. XLA reads this when its
    # backend starts, which is later than `import jax`.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")
    args = _parse(argv)
    run = next(run for kind, run in COMMANDS.values() if isinstance(args, kind))
    quiet()
    try:
        run(args)
    except Exception as error:
        said = complaint(error)
        if said is None:
            raise
        print(said, file=sys.stderr)
        return 2
    return 0


def _parse(argv: Sequence[str] | None) -> Any:
    words = sys.argv[1:] if argv is None else argv
    named = bool(words) and words[0] in COMMANDS
    kinds = tuple(
        Annotated[
            kind, tyro.conf.subcommand(name, description=_help(kind, whole=named))
        ]
        for name, (kind, _) in COMMANDS.items()
    )
    return tyro.cli(
        cast(Any, Union[kinds]),  # noqa: UP007
        args=words,
        prog="cutjax",
        description=DESCRIPTION,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _help(kind: type, whole: bool) -> str:
    """The docstring as it is written; in the list of commands its first line."""
    text = inspect.cleandoc(kind.__doc__ or "")
    return text if whole else text.splitlines()[0]
