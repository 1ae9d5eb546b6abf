"""Which parameters are statistics of a normalisation, told by their names."""

from collections.abc import Callable, Collection, Iterable

from cutjax.given import several

STATE, PAIR = "batch_stats", ("mean", "var")


def statistics(
    paths: Collection[str], state: Iterable[str] | str | None = None
) -> Callable[[str], bool]:
    """Whether a path is one of a statistic.

    Args:
        paths: of all parameters.
        state: parts of the paths of statistics; if not given, `batch_stats`, and a
            `mean` and `var` side by side, as NNX has them.

    Example:
        >>> paths = ["bn/mean", "bn/var", "bn/scale", "mean"]
        >>> list(filter(statistics(paths), paths))
        ['bn/mean', 'bn/var']
    """
    parts = {*several((STATE,) if state is None else state)}

    def held(path: str) -> bool:
        pieces = path.split("/")
        at = max((i for i, piece in enumerate(pieces) if piece in PAIR), default=None)
        if parts & {*pieces}:
            return True
        if state is not None or at is None:
            return False
        beside = ("/".join([*pieces[:at], other, *pieces[at + 1 :]]) for other in PAIR)
        return all(other in paths for other in beside)

    return held
