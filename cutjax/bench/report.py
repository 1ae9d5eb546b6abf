"""Timings as a table for people."""

from collections.abc import Sequence

from rich.table import Table

from cutjax.bench.timing import Timing, best

_COLUMNS = ("p10-p90", "CPU ms", "faster", "compile s", "peak MB", "GFLOP", "M params")


def table(timings: Sequence[Timing]) -> Table:
    """A row per timing; `faster` compares own best settings, the first name being 1.

    Args:
        timings: what `measure` returned.

    Returns:
        A table for `rich.print`; a star marks each candidate's own best setting.
    """
    out = Table("name", "batch", "threads", "setting")
    for heading in ("ms", *_COLUMNS, "file MB"):
        out.add_column(heading, justify="right")
    order = {name: i for i, name in enumerate(dict.fromkeys(t.name for t in timings))}
    for t in sorted(timings, key=lambda t: (t.threads or 1e9, t.batch, order[t.name])):
        reference = best(timings, next(iter(order)), t.batch, t.threads)
        out.add_row(*_cells(t, best(timings, t.name, t.batch, t.threads), reference))
    return out


def _cells(t: Timing, own: Timing, reference: Timing) -> list[str]:
    head = [t.name, f"{t.batch}", f"{t.threads or 'all'}", t.setting]
    if t.refused:
        return [*head, "refused", t.refused.splitlines()[0][:60]]
    star = t is own
    return [
        *head,
        f"{'* ' if star else ''}{t.median_ms:.3g}",
        f"{t.p10_ms:.3g}-{t.p90_ms:.3g}",
        f"{t.cpu_ms:.3g}",
        f"{reference.median_ms / t.median_ms:.2f}x" if star else "",
        f"{t.compile_s:.2f}",
        f"{t.peak_bytes / 1e6:.1f}",
        "?" if t.flops is None else f"{t.flops / 1e9:.3g}",
        f"{t.params / 1e6:.3g}",
        f"{t.file_bytes / 1e6:.3g}",
    ]
