"""Which channels of two networks correspond: their correlations, and their pairs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cutjax.errors import DataError, KeepError, suggest
from cutjax.merge.permute import Permutation
from cutjax.plot import style

MAP = "RdBu_r"
_HOW, _LINES = ("as they stand", "as matched"), ("--", "-")
_COLOURS = ("#8A8A8A", style.GROUPS[0])
_ACROSS = 5  # groups side by side; more make another row of pictures


class _Pair(NamedTuple):
    """Channels of one network (rows, the best matched first) with those of another.

    Columns are in the order of the rows `before`, their matches `after`.
    """

    before: Float[np.ndarray, "n n"]
    after: Float[np.ndarray, "n n"]

    @property
    def lowest(self) -> float:
        """The least correlation on a diagonal."""
        return float(min(np.diag(block).min() for block in self))


def matches(
    correlations: Mapping[str, Float[np.ndarray, "_ _"]],
    permutations: Mapping[str, Permutation],
    *,
    pair: tuple[str, str] | None = None,
) -> Figure:
    """Which channels of one network found which of another.

    Args:
        correlations: by group, see `merge.correlations`.
        permutations: by network, in the order of the correlations, as `align_all` finds
            them; a group that is not named stays as it is.
        pair: the two networks; the first two, if not given.

    Returns:
        A figure: per group, correlations of all channels of one network (rows, the best
        matched on top) with all of the other, as they stand and as matched, when
        matches are on the diagonal. Below, those on either diagonal, in falling order.

    Raises:
        DataError: no group, or correlations of a wrong shape or not finite.
        KeepError: an unknown network, fewer than two, or what is no permutation.

    Example:
        >>> alike = np.eye(4) + 0.5 * np.eye(4)[[3, 2, 1, 0]]
        >>> orders = {"one": {}, "two": {"a:1": np.array([1, 0])}}
        >>> fig = matches({"a:1": alike}, orders)
        >>> fig.axes[2].texts[0].get_text()
        'mean 0.00 → 0.50'
    """
    names = list(permutations)
    if len(names) < 2:
        raise KeepError(f"matches takes the permutations of two networks, not {names}")
    a, b = pair or names[:2]
    for name in (a, b):
        if name not in names:
            raise KeepError(f"no network {name!r}; {suggest(name, names)}")
    if not correlations:
        raise DataError("nothing to draw; pass what `merge.correlations` returned")
    found = {g: _pair(g, c, permutations, (a, b)) for g, c in correlations.items()}
    return _figure(found, a, b)


def _pair(
    group: str,
    given: Float[np.ndarray, "_ _"],
    permutations: Mapping[str, Permutation],
    pair: tuple[str, str],
) -> _Pair:
    names = list(permutations)
    n, rest = divmod(len(given), len(names))
    if given.shape != (len(names) * n,) * 2 or rest or not np.isfinite(given).all():
        raise DataError(
            f"correlations[{group!r}] of {len(names)} networks are "
            f"{list(given.shape)}, or not finite; pass what `merge.correlations` "
            "returned, and permutations of the same networks in the same order"
        )
    orders = []
    for name in pair:
        order = np.asarray(permutations[name].get(group, np.arange(n)))
        if not np.array_equal(np.sort(order), np.arange(n)):
            raise KeepError(
                f"permutations[{name!r}][{group!r}] is no order of {n} channels"
            )
        orders.append(order)
    i, j = (names.index(name) for name in pair)
    block = given.reshape(len(names), n, len(names), n)[i, :, j]
    matched = block[np.ix_(*orders)]
    best = np.argsort(-np.diag(matched), kind="stable")
    rows = orders[0][best]
    return _Pair(block[np.ix_(rows, rows)], matched[np.ix_(best, best)])


def _figure(found: Mapping[str, _Pair], a: str, b: str) -> Figure:
    across = min(len(found), _ACROSS)
    bands = -(-len(found) // across)
    lowest = min(p.lowest for p in found.values())
    # An inch has 110 dots, so that of 256 channels each still has one.
    widest = max(len(p.after) for p in found.values())
    side = float(np.clip(widest / 110, 1.7, 2.4))
    fig = style.figure(across * (side + 0.1) + 1.4, bands * (2.45 * side + 0.7) + 0.3)
    heights = [4, 4, 1.6] * bands
    grid = fig.subplots(3 * bands, across, squeeze=False, height_ratios=heights)
    columns = grid.reshape(bands, 3, across).swapaxes(1, 2).reshape(-1, 3).tolist()
    for axes, (group, text) in zip(columns, style.short(found).items(), strict=False):
        _draw(axes, found[group], lowest)
        title = f"{style.cropped(text, 24)}\n{len(found[group].after)} channels"
        axes[0].set_title(title, fontsize=9)
    for axes in columns[::across]:
        _say_sides(axes, a, b)
    for ax in (ax for axes in columns[len(found) :] for ax in axes):
        ax.remove()
    _legends(fig)
    return fig


def _draw(axes: Sequence[Axes], p: _Pair, lowest: float) -> None:
    for ax, block in zip(axes, p, strict=False):
        ax.imshow(block, cmap=MAP, vmin=-1, vmax=1, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_color(style.NOBODY)
    ax = axes[2]
    before, after = (np.sort(np.diag(block))[::-1] for block in p)
    ax.fill_between(range(len(after)), after, color=_COLOURS[1], alpha=0.2, lw=0)
    for values, colour, line in zip((before, after), _COLOURS, _LINES, strict=True):
        ax.plot(values, line, color=colour, lw=1.4)
    text = f"mean {before.mean():.2f} → {after.mean():.2f}"
    ax.text(0.97, 1.0, text, transform=ax.transAxes, ha="right", va="top", fontsize=8)
    ax.set(ylim=(min(-0.1, lowest - 0.05), 1.25), xticks=[], yticks=[0, 0.5, 1])
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    ax.axhline(0, color=style.INK, lw=0.6)
    ax.tick_params(labelsize=7.5, length=2)
    ax.margins(x=0.02)


def _say_sides(axes: Sequence[Axes], a: str, b: str) -> None:
    where: dict[str, Any] = dict(fontsize=8, color=style.INK)
    for ax, how in zip(axes, _HOW, strict=False):
        ax.set_ylabel(f"{how}\nchannels of {style.cropped(a, 12)}", **where)
        ax.set_xlabel(f"channels of {style.cropped(b, 12)}", **where)
    axes[2].set_ylabel("on the\ndiagonal", **where)


def _legends(fig: Figure) -> None:
    norm = Normalize(-1, 1)
    shown = ScalarMappable(norm, colormaps[MAP])
    bar = fig.colorbar(shown, ax=fig.axes, shrink=0.6, aspect=30, pad=0.02)
    bar.set_label("correlation", fontsize=8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)
    bar.set_ticks([-1, -0.5, 0, 0.5, 1])
    pairs = zip(_HOW, _COLOURS, _LINES, strict=True)
    lines = [Line2D([], [], color=c, ls=ls, label=how) for how, c, ls in pairs]
    where: dict[str, Any] = dict(ncols=2, frameon=False, fontsize=8)
    fig.legend(handles=lines, loc="outside lower center", **where)
