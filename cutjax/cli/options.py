"""What `cutjax merge` is given: networks by name, and options that go together."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cutjax.cli.common import check_seed
from cutjax.cli.parent import from_parent
from cutjax.errors import DataError
from cutjax.recover.normal import check_damping
from cutjax.source import Job, SourceError, from_source

_EXAMPLE = "`cutjax merge one=runs/one two=runs/two`"


class Settings(NamedTuple):
    """The options of `cutjax merge`, checked; see its help."""

    models: dict[str, str]
    share: str
    align: str
    method: str
    layers: str
    calibration: int
    damping: float | None
    seed: int
    progress: bool


def checked(args: Any) -> Settings:
    """Settings from the arguments, before anything is loaded.

    Raises:
        DataError: networks that are not `NAME=MODEL`, or options that do not go
            together.
    """
    models = _models(args.networks)
    align = args.align
    if align == "auto":
        align = "none" if args.share == "as-is" else "activations"
    if (args.share == "as-is") != (align == "none"):
        raise DataError(
            f"--share {args.share} with --align {align}: give --share as-is, which "
            "compares nothing, or --share permute --align activations (or weights)"
        )
    if args.share == "zip" and align == "weights":
        raise DataError(
            "--share zip with --align weights: channels are zipped by how they "
            "respond; give --align activations, or --share permute --align weights"
        )
    if args.calibration < len(models):
        raise DataError(
            f"--calibration {args.calibration} needs an example per network or more"
        )
    check_seed(args.seed)
    check_damping(args.damping, "--damping")
    return Settings(
        models=models,
        share=args.share,
        align=align,
        method=args.method,
        layers=args.layers,
        calibration=args.calibration,
        damping=args.damping,
        seed=args.seed,
        progress=args.progress,
    )


def _models(given: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in given:
        name, _, model = word.partition("=")
        if not (re.fullmatch(r"[\w.-]+", name) and model):
            raise DataError(
                f"{word!r} is not NAME=MODEL, a name of letters and digits and a "
                f"folder or package.module:function, as in {_EXAMPLE}"
            )
        if name in found:
            raise DataError(f"two networks are called {name!r}; as in {_EXAMPLE}")
        found[name] = model
    if len(found) < 2:
        raise DataError(
            f"{len(found)} network{'s' * (len(found) != 1)} to merge; give two or "
            f"more, as in {_EXAMPLE}"
        )
    return found


def job_of(name: str, model: str) -> Job:
    """The network that `NAME=MODEL` names.

    Args:
        name: for errors.
        model: a folder of `cutjax train`, or `package.module:function`.

    Returns:
        The network and its data.

    Raises:
        CheckpointError: the folder holds no parent.
        DataError: neither a folder nor a function.
        SourceError: the function cannot be found, or answers something else.
    """
    if (Path(model) / "merge.json").exists():
        raise DataError(
            f"{name}={model}: that is a merged network; merge all of the networks that "
            "went into it at once, or give a package.module:function that returns it "
            "as a `cutjax.source.Job`"
        )
    if Path(model).is_dir():
        return from_parent(Path(model))
    if ":" not in model:
        raise DataError(
            f"{name}={model}: there is no folder {model!r}, and it is not of the form "
            f"package.module:function; make one with `cutjax train --out {model}`"
        )
    try:
        return from_source(model)
    except SourceError as error:
        said = str(error).removeprefix("--source ")
        raise SourceError(f"network {name!r}: {said}") from error
