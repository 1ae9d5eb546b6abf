"""`python -m rivalry.theirs OUT`: Torch-Pruning's rows; runs where PyTorch is."""

import copy
import functools
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from rivalry import images, protocol, torchcut, torchnet
from rivalry.book import Book
from rivalry.protocol import DECAY, MIDDLE, NETS, SEEDS, TEMPERATURE, climb
from rivalry.torchcut import Method
from rivalry.torchnet import Net, accuracy, widths

LOSSES = ("labels", "distil", "both")

FIRST = protocol.FACTORS[0]


class Run(NamedTuple):
    """A fine-tuning."""

    method: Method
    factor: float
    loss: str
    rate: float
    seed: int

    @property
    def names(self) -> dict[str, Any]:
        return {**self._asdict(), "method": self.method.name}


class Job:
    """A network, its parent, and what is computed once for it."""

    def __init__(self, name: str, data: images.Images, book: Book):
        self.name, self.data, self.book = name, data, book
        self.spec = NETS[name]
        self.parent = torchnet.parent(
            protocol.WEIGHTS / self.spec.file, self.spec.blocks
        )
        self.full = protocol.multiply_adds(widths(self.parent))
        self.validation = images.validation(data)
        self.test = images.test(data)
        self.slopes = functools.cache(self._slopes)
        self.taught = functools.lru_cache(maxsize=1)(self._taught)
        self.cut = functools.cache(self._cut)
        self.trained = functools.cache(self._trained)

    def _slopes(self, seed: int) -> torchcut.Slopes:
        return torchcut.slopes(self.parent, images.calibration(self.data, seed))

    def _taught(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, y = images.tuning(self.data, seed, self.spec.steps)
        return x, y, torchnet.answers(self.parent, x)

    def _cut(self, method: Method, factor: float, seed: int) -> Net:
        """As Torch-Pruning leaves it."""
        slopes = self.slopes(seed)
        return torchcut.cut(self.parent, method, self.full / factor, slopes, seed)

    def _trained(self, run: "Run") -> tuple[Net, float]:
        net = self.cut(run.method, run.factor, run.seed)
        x, _ = images.calibration(self.data, run.seed)
        began = time.perf_counter()
        net = train(
            torchcut.re_estimated(net, x), self.taught(run.seed), run.loss, run.rate
        )
        return net, time.perf_counter() - began

    def size(self, net: Net) -> dict[str, Any]:
        """What every row says of a net."""
        held = widths(net)
        macs, params = protocol.multiply_adds(held), protocol.parameters(held)
        return {"macs": macs, "params": params, "full_macs": self.full}


def main(out: Path) -> None:
    """What is missing: all networks with the first seed, then with the next."""
    torch.set_num_threads(1)  # the other side has the other core
    data = images.load(out)
    found: dict[str, dict[str, float]] = {}
    for seed, name in itertools.product(SEEDS, NETS):
        job = Job(name, data, Book(out / "results.jsonl", name, "theirs"))
        same_parent(job, out / f"answers_{name}.npz")
        screen(job, FIRST)
        method = best(job, FIRST)
        if name not in found:
            found[name] = rates(job, method)
        for factor in protocol.FACTORS:
            start(job, method, factor, seed)
            for loss in LOSSES:
                final(job, Run(method, factor, loss, found[name][loss], seed))


def same_parent(job: Job, path: Path) -> None:
    """Holds the parent to the logits that the other side wrote."""

    def measure() -> dict[str, Any]:
        with np.load(path) as file:
            x, expected = file["x"], file["logits"]
        apart = float(np.abs(torchnet.answers(job.parent, x) - expected).max())
        if apart > 1e-3:
            raise SystemExit(f"{job.name}: the parents differ by {apart}")
        figures = {"apart": apart, "validation": accuracy(job.parent, job.validation)}
        figures["test"] = accuracy(job.parent, job.test)
        return {**figures, "machine": protocol.machine()}

    job.book.row("parent", measure)


def screen(job: Job, factor: float) -> None:
    """Every method as cut and with new statistics, on some validation images."""
    x, _ = images.calibration(job.data, 0)
    some = tuple(part[: protocol.SCREENED] for part in job.validation)
    for method in torchcut.METHODS:

        def measure(method: Method = method) -> dict[str, Any]:
            net = job.cut(method, factor, 0)
            new = torchcut.re_estimated(net, x)
            figures = {"cut": accuracy(net, some), "re_estimated": accuracy(new, some)}
            return {**figures, **job.size(net)}

        job.book.row("screen", measure, method=method.name, factor=factor)


def best(job: Job, factor: float) -> Method:
    """The best after fine-tuning, of the best variants of the best criteria."""
    rows = job.book.rows("screen", factor=factor)
    order = sorted(rows, key=lambda row: -row["re_estimated"])
    variants: dict[str, Method] = {}
    for row in order:
        method = Method(*row["method"].split("/"))
        variants.setdefault(method.criterion, method)
    names = [n for n in variants if n != "random"][: job.spec.tried["theirs"]]
    tried = [variants[name] for name in (*names, "random")]
    return max(tried, key=lambda m: tuned(job, Run(m, factor, "labels", MIDDLE, 0)))


def rates(job: Job, method: Method) -> dict[str, float]:
    """For each loss, the learning rate that is best on validation."""

    def best(loss: str) -> float:
        return climb(lambda rate: tuned(job, Run(method, FIRST, loss, rate, 0)))

    found = {loss: best(loss) for loss in LOSSES[:2]}
    return found | {"both": found["distil"]}


def start(job: Job, method: Method, factor: float, seed: int) -> None:
    """As cut and with new statistics, on test."""

    def measure() -> dict[str, Any]:
        net = job.cut(method, factor, seed)
        new = torchcut.re_estimated(net, images.calibration(job.data, seed)[0])
        found = {"cut": accuracy(net, job.test), **job.size(net)}
        return {**found, "re_estimated": accuracy(new, job.test)}

    job.book.row("start", measure, method=method.name, factor=factor, seed=seed)


def tuned(job: Job, run: Run) -> float:
    """What a fine-tuned cut reaches on validation."""

    def measure() -> dict[str, Any]:
        net, seconds = job.trained(run)
        found = {"validation": accuracy(net, job.validation), "seconds": seconds}
        return {**found, **job.size(net)}

    steps = job.spec.steps
    return job.book.row("tuned", measure, **run.names, steps=steps)["validation"]


def final(job: Job, run: Run) -> None:
    """The same on test."""

    def measure() -> dict[str, Any]:
        net, seconds = job.trained(run)
        found = {"test": accuracy(net, job.test), "seconds": seconds}
        return {**found, **job.size(net)}

    job.book.row("final", measure, **run.names, steps=job.spec.steps)


def train(net: Net, taught: tuple[np.ndarray, ...], loss: str, rate: float) -> Net:
    """AdamW with one cycle, as the other side; every image once, in its order."""
    net = copy.deepcopy(net).train()
    x, y, logits = taught
    steps = len(x) // protocol.BATCH
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=DECAY)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        *(optimizer, rate, steps), cycle_momentum=False, div_factor=25
    )
    objective = objectives()[loss]
    for step in range(steps):
        rows = slice(step * protocol.BATCH, (step + 1) * protocol.BATCH)
        optimizer.zero_grad()
        labels = torch.from_numpy(y[rows]).long()
        found = net(torchnet.images(x[rows]))
        objective(found, labels, torch.from_numpy(logits[rows])).backward()
        optimizer.step()
        cycle.step()
    return net.eval()


def objectives() -> dict[str, Callable[..., torch.Tensor]]:
    """Losses of logits, labels and the parent's logits, as in `cutjax.finetune`."""

    def distil(found: torch.Tensor, _: Any, parent: torch.Tensor) -> torch.Tensor:
        student = F.log_softmax(found / TEMPERATURE, 1)
        teacher = F.softmax(parent / TEMPERATURE, 1)
        return TEMPERATURE**2 * F.kl_div(student, teacher, reduction="batchmean")

    def labels(found: torch.Tensor, y: torch.Tensor, _: Any) -> torch.Tensor:
        return F.cross_entropy(found, y)

    def both(found: torch.Tensor, y: torch.Tensor, parent: Any) -> torch.Tensor:
        return distil(found, y, parent) + labels(found, y, parent)

    return {"labels": labels, "distil": distil, "both": both}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
