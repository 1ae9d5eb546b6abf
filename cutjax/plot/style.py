"""Names that fit, colours that everybody can tell apart, figures without pyplot."""

import colorsys
from collections import Counter
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

# Okabe & Ito's palette, safe for the common colour deficiencies, for the tasks; Paul
# Tol's for the groups, which may be many: each further round is a shade darker.
TASKS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
GROUPS = (
    *("#4477AA", "#EE8866", "#44AA99", "#CCBB44", "#AA4499"),
    *("#66CCEE", "#CC6677", "#999933", "#8877BB", "#DDAA77"),
)
SHARED, NOBODY, PINNED, INK = "#4D4D4D", "#E3E3E3", "#BBBBBB", "#333333"

_DROPPED = ("kernel", "weight", "embedding")


def figure(width: float, height: float) -> Figure:
    """An empty figure in inches; nothing global knows about it."""
    return Figure((width, height), dpi=110, layout="constrained")


def bare(ax: Axes) -> None:
    """Take the frame and the tick marks away."""
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelsize=8, colors=INK)


def task_colours(tasks: Sequence[str]) -> dict[str, str]:
    """A colour per task."""
    return {task: TASKS[i % len(TASKS)] for i, task in enumerate(tasks)}


def group_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour per group; neighbours always differ."""
    out = {}
    for i, name in enumerate(names):
        h, l, s = colorsys.rgb_to_hls(*to_rgb(GROUPS[i % len(GROUPS)]))  # noqa: E741
        shade = 1 - 0.22 * (i // len(GROUPS) % 4)
        out[name] = to_hex(colorsys.hls_to_rgb(h, l * shade, s))
    return out


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on this colour."""
    r, g, b = to_rgb(colour)
    return "white" if 0.3 * r + 0.59 * g + 0.11 * b < 0.6 else "black"


def cropped(text: str, most: int = 30) -> str:
    """At most this many characters; what goes is in the middle, where names agree."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[half + 1 - most :]}"


def short(names: Iterable[str]) -> dict[str, str]:
    """Names without what they all share: the collection, `kernel`, the axis.

    Args:
        names: of groups (`path:axis`) or of parameters.

    Returns:
        Per name a shorter one; the axis stays where it tells two names apart.

    Example:
        >>> list(short(["params/a/kernel:3", "params/b/kernel:1"]).values())
        ['a', 'b']
        >>> list(short(["params/q/kernel:1", "params/q/kernel:2"]).values())
        ['q:1', 'q:2']
    """
    split = {name: name.rpartition(":") for name in names}
    paths = {n: (p or last).split("/") for n, (p, _, last) in split.items()}
    for name, parts in paths.items():
        if len(parts) > 1 and parts[-1] in _DROPPED:
            paths[name] = parts[:-1]
    while len({p[0] for p in paths.values()}) == 1 and all(
        len(p) > 1 for p in paths.values()
    ):
        paths = {name: parts[1:] for name, parts in paths.items()}
    bare_names = {name: "/".join(parts) for name, parts in paths.items()}
    often = Counter(bare_names.values())
    return {
        name: text if often[text] == 1 else f"{text}:{split[name][2]}"
        for name, text in bare_names.items()
    }
