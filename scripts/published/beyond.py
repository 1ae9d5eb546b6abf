"""What is asked of one model beyond a cut: reordered, found again, merged, refitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import cutjax as cj
from cutjax.errors import KeepError
from cutjax.merge import OWN, Network, average, from_permutations, permute
from cutjax.merge.merged import answers
from cutjax.merge.permute import inverse

from .base import Model
from .check import choose, difference, run


class Trial:
    """A model, its graph, what it answers, and a few batches like its inputs."""

    def __init__(self, model: Model, seed: int) -> None:
        self.model, self.rng = model, np.random.default_rng(seed)
        self.graph = cj.trace(model.apply, model.params, *model.inputs)
        self.batches = [(jax.tree.map(self.alike, model.inputs),) for _ in range(2)]
        self.want = self.run(model.params)

    def alike(self, x: Any) -> Any:
        """Floating inputs with noise; indices and masks as they are."""
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            return x
        return x + 0.3 * np.std(x) * self.rng.normal(size=x.shape).astype(x.dtype)

    def run(self, params: Any, inputs: Any = None) -> Any:
        return run(self.model.apply, params, *(inputs or self.model.inputs))

    def network(self, params: Any) -> Network:
        return Network(self.model.apply, params, self.graph)

    def changed(self) -> Any:
        """Every parameter times something near one."""

        def change(leaf: Any) -> Any:
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                return leaf
            return (leaf * self.rng.uniform(0.8, 1.2, np.shape(leaf))).astype(
                leaf.dtype
            )

        return jax.tree.map(change, self.model.params)


def beyond(model: Model, seed: int = 0) -> dict[str, Any]:
    """Everything that the page says of a model, as fields of `beyond_table.Row`.

    Raises:
        WrongResult: an output differs, has another shape or is not finite.
    """
    trial = Trial(model, seed)
    return {**copied(trial), **beside(trial), **refitted(trial)}


def copied(trial: Trial) -> dict[str, Any]:
    """A reordered copy: the same function, found again, merged with its original."""
    model, graph = trial.model, trial.graph
    order = {
        g.name: trial.rng.permutation(g.size) for g in graph.free if g.ordered is None
    }
    copy = permute(model.params, graph, order)
    found = {"reordered": difference(trial.run(copy), trial.want)}
    data = {"apply": model.apply, "batches": trial.batches}
    for name, options in (("weights", {}), ("activations", data)):
        back, _ = cj.merge.align(graph, model.params, copy, progress=False, **options)
        right = [order[n][back[n]] == np.arange(len(order[n])) for n in order]
        found[name] = float(np.mean(np.concatenate(right))) if right else 1.0
    nets = {"one": trial.network(model.params), "two": trial.network(copy)}
    sharing = from_permutations(graph, {"one": {}, "two": inverse(order)})
    wants = dict.fromkeys(nets, trial.want)
    return {**found, "merged": against(average, nets, sharing, wants, trial)}


def beside(trial: Trial) -> dict[str, Any]:
    """A changed copy: nothing shared, one alone on the shared side, half of all."""
    changed, graph = trial.changed(), trial.graph
    nets = {"one": trial.network(trial.model.params), "two": trial.network(changed)}
    wants = {"one": trial.want, "two": trial.run(changed)}
    worst = 0.0
    for ways in ((own, own), (own, np.arange)):
        sharing = {
            g.name: {n: way(g.size) for n, way in zip(nets, ways, strict=True)}
            for g in graph.free
        }
        try:
            worst = max(worst, against(average, nets, sharing, wants, trial))
        except KeepError as error:
            # Not everything can be shared by some only; then it says so.
            if ways == (own, own) or " be shared " not in str(error):
                raise
    whole = cj.merge.whole_groups(nets["one"], trial.model.inputs)
    part = {g.name for g in graph.free if g.size > 1 and g.name not in whole}
    found = {"beside": worst, "part": f"{len(part)} of {len(graph.free)}"}
    return {**found, "fitted": in_part(trial, nets, part)} if part else found


def own(size: int) -> np.ndarray:
    """Nothing is shared."""
    return np.full(size, OWN)


def in_part(trial: Trial, nets: Mapping[str, Network], part: set[str]) -> float:
    """The error of least squares in that of averages, half of some groups shared."""
    sharing = {}
    for group in trial.graph.free:
        at = np.arange(group.size)
        some = np.where(at < group.size // 2, at, OWN) if group.name in part else at
        sharing[group.name] = dict.fromkeys(nets, some)
    inputs = trial.model.inputs
    ways = (
        average(nets, sharing, inputs),
        cj.merge.least_squares(nets, sharing, trial.batches, progress=False),
    )
    errors = []
    for merged in ways:
        each = []
        for (given,) in trial.batches:
            got = run(merged.apply, merged.params, *given)
            for name, net in nets.items():
                wants = answers(name, trial.run(net.params, given))
                each += [distance(got[task], want) for task, want in wants.items()]
        errors.append(float(np.mean(each)))
    return errors[1] / max(errors[0], 1e-12)


def refitted(trial: Trial) -> dict[str, Any]:
    """Cut at random and compensated: what is left of the error."""
    model, graph = trial.model, trial.graph
    keep = {
        g.name: choose(trial.rng, g.size, max(1, g.size - round(0.4 * g.size)))
        for g in graph.free
    }
    apply, as_cut = cj.cut(model.apply, model.params, graph, keep)
    small, fits = cj.compensate(
        *(model.apply, model.params, graph, keep, trial.batches), progress=False
    )

    def error(params: Any) -> float:
        each = [
            distance(run(apply, params, *given), trial.run(model.params, given))
            for (given,) in trial.batches
        ]
        return float(np.mean(each))

    return {"readers": len(fits), "cut": error(as_cut), "refitted": error(small)}


def against(
    merge: Callable[..., Any],
    nets: Mapping[str, Network],
    sharing: Any,
    wants: Mapping[str, Any],
    trial: Trial,
) -> float:
    """The largest difference between the merged network's answers and those wanted."""
    merged = merge(nets, sharing, trial.model.inputs)
    got = run(merged.apply, merged.params, *trial.model.inputs)
    return max(
        difference(got[task], want)
        for name in nets
        for task, want in answers(name, wants[name]).items()
    )


def distance(got: Any, want: Any) -> float:
    """Norm of the difference over the norm, the mean over outputs that were not cut."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    each = [
        np.linalg.norm(np.subtract(a, b, dtype=float)) / max(np.linalg.norm(b), 1e-9)
        for a, b in pairs
        if np.size(b) and np.shape(a) == np.shape(b)
    ]
    return float(np.mean(each)) if each else 0.0
