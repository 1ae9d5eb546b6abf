"""Milliseconds of the chosen networks, for all tasks and for each alone."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.serialization import msgpack_restore

import cutjax as cj
from cutjax import bench
from regrouping.nets import Nets
from regrouping.page import Row, chosen
from regrouping.systems import merged_function, sharing_of, together

BATCH = 8
ORIGINALS = "originals"


def timed(nets: Nets, rows: list[dict], models: Path) -> dict[str, dict[str, float]]:
    """By system and subset: milliseconds of a batch of BATCH on one thread.

    Args:
        nets: the originals.
        rows: of one data set and seed.
        models: where their parameters were kept.
    """
    found: dict[str, Any] = {s: r for s, r in chosen(rows).items() if r is not None}
    apart = together(nets)
    functions = {ORIGINALS: (apart.apply, apart.params)}
    functions |= {s: restored(nets, s, row, models) for s, row in found.items()}
    subsets = {"all": nets.tasks, **{task: (task,) for task in nets.tasks}}
    candidates = {
        f"{system}|{name}": (cj.select(apply, tasks), params)
        for system, (apply, params) in functions.items()
        for name, tasks in subsets.items()
    }
    x = nets.data.test.x[:BATCH]
    timings = bench.measure(
        candidates, x, batch_sizes=(BATCH,), threads=(1,), max_workers=6
    )
    return {
        system: {
            name: bench.best(timings, f"{system}|{name}", BATCH, 1).median_ms
            for name in subsets
        }
        for system in functions
    }


def restored(nets: Nets, system: str, row: Row, models: Path) -> tuple[Any, Any]:
    """The function and parameters of a row."""
    kept = msgpack_restore((models / f"{row['key']}.msgpack").read_bytes())
    whole = merged_function(nets, sharing_of(system, nets))
    graph = cj.trace(whole.apply, whole.params, nets.data.train.x[:1])
    keep = {group: np.asarray(mask) for group, mask in kept["keep"].items()}
    apply = cj.shrink(whole.apply, graph, keep)
    return apply, jax.tree.map(jnp.asarray, kept["params"])
