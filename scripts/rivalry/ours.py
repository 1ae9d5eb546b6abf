"""`python -m rivalry.ours OUT`: cutjax's rows."""

import functools
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import cutjax as cj
from cutjax.data import Split, batches, take
from cutjax.metrics import accuracy
from cutjax.models import eval_apply, train_apply
from cutjax.models.importers import from_torch, read_npz
from cutjax.models.resnet_cifar import CifarResNet
from cutjax.recover import frozen, gradually, settle
from rivalry import images, protocol
from rivalry.book import Book
from rivalry.protocol import BATCH, MIDDLE, NETS, SEEDS, TEMPERATURE, climb

TASK = "label"
DEFAULT = "joint/greedy"
CRITERIA = ("joint", "gram", "taylor", "fisher", "random")
SCOPES = ("greedy", "uniform")
METHODS = [
    f"{criterion}/{scope}"
    for criterion, scope in itertools.product(CRITERIA, SCOPES)
    # Random widths by random scores are worse still.
    if (criterion, scope) != ("random", "greedy")
]
METHODS += ["joint/rounds", "fisher/rounds"]
ROUNDS = 4
LOSSES = {"distil": 0.0, "both": 1.0}
STATISTICS = ("frozen", "settled")
CALIBRATION_BATCH = 128
FIRST = protocol.FACTORS[0]


def cross_entropy(logits: Any, y: Any) -> Any:
    """The mean over examples."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


LOSS = {TASK: cross_entropy}


class Run(NamedTuple):
    """A fine-tuning. `statistics`: of BatchNorm, frozen, or settled and moving."""

    method: str
    factor: float
    loss: str
    rate: float
    statistics: str
    seed: int


class Job:
    """A network, its parent, and what is computed once for it."""

    def __init__(self, name: str, data: images.Images, book: Book):
        self.name, self.data, self.book = name, data, book
        self.spec = NETS[name]
        self.model = CifarResNet(blocks=self.spec.blocks)
        arrays = read_npz(protocol.WEIGHTS / self.spec.file)
        self.params = from_torch(self.model, arrays, data.test[:1])
        self.apply, self.train_apply = eval_apply(self.model), train_apply(self.model)
        self.graph = cj.trace(
            self.apply, self.params, images.standardised(data.test[:1])
        )
        self.full = protocol.multiply_adds(widths(self.params))
        self.validation = split(images.validation(data))
        self.test = split(images.test(data))
        self.scores = functools.cache(self._scores)
        self.taught = functools.lru_cache(maxsize=1)(self._taught)
        self.fitted = functools.cache(self._fitted)
        self.gradual = functools.cache(self._gradual)
        self.trained = functools.cache(self._trained)

    def calibration(self, seed: int) -> list[Any]:
        """Batches of this seed's images."""
        return list(
            batches(split(images.calibration(self.data, seed)), CALIBRATION_BATCH)
        )

    def _scores(self, seed: int) -> Any:
        makers = {name: cj.criteria.ALL[name] for name in CRITERIA}
        options: dict[str, Any] = {"random": {"seed": seed}}
        chosen = {n: make(**options.get(n, {})) for n, make in makers.items()}
        full = (self.apply, self.params, self.graph)
        data = self.calibration(seed)
        return cj.saliency(*full, LOSS, data, criterion=chosen, progress=False)

    def _gradual(self, criterion: str, factor: float, seed: int) -> Any:
        """The last of some rounds of scoring what is left, cutting and refitting."""
        data = self.calibration(seed)
        rounds = gradually(
            *(self.apply, self.params, self.graph, data),
            budgets=[
                cj.Budget(flops=share)
                for share in cj.schedule.exponential(1 / factor, ROUNDS)
            ],
            score=lambda apply, params, graph: cj.saliency(
                *(apply, params, graph, LOSS, data),
                criterion=cj.criteria.ALL[criterion],
                progress=False,
            ),
            tasks=TASK,
            progress=False,
        )
        return list(rounds)[-1]

    def keep(self, method: str, factor: float, seed: int) -> Any:
        """The channels that a criterion keeps."""
        budget = cj.Budget(flops=1 / factor)
        criterion, scope = method.split("/")
        if scope == "rounds":
            return self.gradual(criterion, factor, seed).keep
        allocate = getattr(cj.allocate, scope)
        options = {"tasks": TASK, "budget": budget, "allocate": allocate}
        return cj.plan(self.graph, self.scores(seed)[criterion], **options)[0]

    def _fitted(self, method: str, factor: float, seed: int) -> Any:
        """The compact function, its parameters as cut and compensated, seconds."""
        full = (self.apply, self.params, self.graph)
        keep = self.keep(method, factor, seed)
        apply, small = cj.cut(*full, keep, TASK)
        data, began = self.calibration(seed), time.perf_counter()
        fitted, _ = cj.compensate(*full, keep, data, tasks=TASK, progress=False)
        return apply, small, fitted, time.perf_counter() - began

    def _trained(self, run: "Run") -> tuple[Any, Any, float]:
        apply, _, fitted, _ = self.fitted(run.method, run.factor, run.seed)
        keep = self.keep(run.method, run.factor, run.seed)
        train, start = frozen(apply), fitted
        if run.statistics == "settled":
            train = cj.shrink(self.train_apply, self.graph, keep, TASK)
            data = self.calibration(run.seed)
            start = settle(apply, fitted, data, progress=False)
        params, info = cj.finetune(
            train,
            start,
            self.taught(run.seed),
            tasks=(TASK,),
            epochs=1,
            batch_size=BATCH,
            learning_rate=run.rate,
            temperature=TEMPERATURE,
            labels=LOSSES[run.loss],
            seed=run.seed,
            progress=False,
        )
        return apply, params, info.seconds

    def _taught(self, seed: int) -> Split:
        data = split(images.tuning(self.data, seed, self.spec.steps))
        return cj.teach(self.apply, self.params, data, tasks=(TASK,))

    def size(self, params: Any) -> dict[str, Any]:
        """What every row says of a net."""
        held = widths(params)
        macs, count = protocol.multiply_adds(held), protocol.parameters(held)
        return {"macs": macs, "params": count, "full_macs": self.full}


def main(out: Path) -> None:
    """What is missing: all networks with the first seed, then with the next."""
    data = images.load(out)
    found: dict[str, list[Run]] = {}
    for seed, name in itertools.product(SEEDS, NETS):
        job = Job(name, data, Book(out / "results.jsonl", name, "ours"))
        parent(job)
        if name not in found:
            found[name] = ways(job, found.get(job.spec.like or ""))
        for factor in protocol.FACTORS:
            start(job, found[name][0].method, factor, seed)
            for run in found[name]:
                final(job, run._replace(factor=factor, seed=seed))


def ways(job: Job, like: list[Run] | None) -> list[Run]:
    """The method, and per loss how it is trained, chosen on validation.

    With `like` only the learning rates are chosen.
    """
    if like is not None:
        return [rated(job, run) for run in like]
    screen(job, FIRST)
    blank = Run(best(job, FIRST), FIRST, "", MIDDLE, STATISTICS[0], 0)
    return [way(job, blank._replace(loss=loss)) for loss in LOSSES]


def write_answers(out: Path, data: images.Images) -> None:
    """The parents' logits on a few images, to which the other side's are held."""
    x = images.standardised(data.test[::160])
    for name, spec in NETS.items():
        path = out / f"answers_{name}.npz"
        if not path.exists():
            model = CifarResNet(blocks=spec.blocks)
            params = from_torch(model, read_npz(protocol.WEIGHTS / spec.file), x)
            logits = np.asarray(jax.jit(model.apply)(params, x)[TASK])
            part = path.with_suffix(".part.npz")
            np.savez(part, x=x, logits=logits)
            part.rename(path)


def parent(job: Job) -> None:
    """The published network: as it is, and with statistics of the JPEG images."""

    def measure() -> dict[str, Any]:
        data = [x for x, _ in job.calibration(0)]
        new = cj.recalibrate(job.train_apply, job.params, data, progress=False)
        return {
            "validation": right(job.apply, job.params, job.validation),
            "test": right(job.apply, job.params, job.test),
            "re_estimated": right(job.apply, new, job.test),
            "machine": protocol.machine(),
            **job.size(job.params),
        }

    job.book.row("parent", measure)


def screen(job: Job, factor: float) -> None:
    """Every criterion as cut, with new statistics, compensated; on some validation."""
    some = take(job.validation, np.arange(protocol.SCREENED))
    for method in METHODS:
        job.book.row(
            "screen",
            lambda m=method: steps_of(job, m, factor, 0, some),
            method=method,
            factor=factor,
        )


def start(job: Job, method: str, factor: float, seed: int) -> None:
    """The same on test."""
    names = {"method": method, "factor": factor, "seed": seed}
    made = functools.partial(steps_of, job, method, factor, seed, job.test)
    job.book.row("start", made, **names)


def steps_of(
    job: Job, method: str, factor: float, seed: int, on: Split
) -> dict[str, Any]:
    """Accuracy before any training."""
    apply, small, fitted, seconds = job.fitted(method, factor, seed)
    train = cj.shrink(job.train_apply, job.graph, job.keep(method, factor, seed), TASK)
    data = [x for x, _ in job.calibration(seed)]
    new = cj.recalibrate(train, small, data, progress=False)
    found = {"cut": small, "re_estimated": new, "compensated": fitted}
    figures = {name: right(apply, params, on) for name, params in found.items()}
    return {**figures, "seconds": seconds, **job.size(small)}


def best(job: Job, factor: float) -> str:
    """The best after fine-tuning, of the best after compensation."""
    rows = job.book.rows("screen", factor=factor)
    order = sorted(rows, key=lambda row: -row["compensated"])
    variants: dict[str, str] = {}
    for row in order:
        variants.setdefault(row["method"].split("/")[0], row["method"])
    names = [variants[n] for n in variants if n != "random"][: job.spec.tried["ours"]]
    run = Run("", factor, "both", MIDDLE, STATISTICS[0], 0)
    tried = dict.fromkeys((*names, DEFAULT))
    return max(tried, key=lambda m: tuned(job, run._replace(method=m)))


def way(job: Job, run: Run) -> Run:
    """The run with the learning rate and statistics that are best on validation."""
    found = [rated(job, run._replace(statistics=name)) for name in STATISTICS]
    return max(found, key=lambda run: tuned(job, run))


def rated(job: Job, run: Run) -> Run:
    """The run with the learning rate that is best on validation."""
    return run._replace(rate=climb(lambda rate: tuned(job, run._replace(rate=rate))))


def tuned(job: Job, run: Run) -> float:
    """What a fine-tuned, compensated cut reaches on validation."""

    def measure() -> dict[str, Any]:
        apply, params, seconds = job.trained(run)
        found = {"validation": right(apply, params, job.validation)}
        return {**found, "seconds": seconds, **job.size(params)}

    steps = job.spec.steps
    return job.book.row("tuned", measure, **run._asdict(), steps=steps)["validation"]


def final(job: Job, run: Run) -> None:
    """The same on test."""

    def measure() -> dict[str, Any]:
        apply, params, seconds = job.trained(run)
        found = {"test": right(apply, params, job.test), "seconds": seconds}
        return {**found, **job.size(params)}

    job.book.row("final", measure, **run._asdict(), steps=job.spec.steps)


def right(apply: Callable[..., Any], params: Any, on: Split) -> float:
    """Percent of labels."""
    return accuracy(apply, params, on)[TASK]


def split(part: images.Part) -> Split:
    """Images and labels as cutjax's data."""
    return Split(part[0], {TASK: part[1]})


def widths(params: Any) -> dict[str, tuple[int, int]]:
    """`(inputs, outputs)` of what `protocol.multiply_adds` counts, as PyTorch names."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["params"]):
        *modules, kind = (key.key for key in path)
        if kind == "kernel":
            name = ".".join(modules).replace("_", ".")
            found[name] = (leaf.shape[-2], leaf.shape[-1])
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
