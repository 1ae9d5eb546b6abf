"""A small run that is there to be killed: python tests/fit_run.py FOLDER SCAN."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cutjax import sparse
from cutjax.data import Split
from cutjax.fit import fit

RNG = np.random.default_rng(0)
X = RNG.normal(size=(150, 1, 1, 4)).astype(np.float32)
DATA = Split(X, {"y": np.sin(X.sum((1, 2, 3)))})
START = {
    "a": jnp.asarray(RNG.normal(size=(4, 16)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=16), jnp.float32),
    "seen": jnp.zeros(16),
    "none": jnp.zeros((0, 3)),
}


def apply(p: Any, x: Any) -> Any:
    """A net of one hidden layer with a running mean."""
    hidden = jnp.tanh(x[:, 0, 0, :] @ p["a"])
    mean = 0.9 * p["seen"] + 0.1 * hidden.mean(0)
    return (hidden - mean) @ p["b"], {"seen": mean}


def loss(out: Any, y: Any) -> Any:
    """Squared error."""
    return jnp.mean((out - y["y"]) ** 2), {"mean": out.mean()}


def evaluate(p: Any) -> dict[str, float]:
    """Minus the error on the last examples."""
    out, _ = apply(p, jnp.asarray(X[-20:]))
    return {"score": -float(jnp.mean((out - DATA.y["y"][-20:]) ** 2))}


def run(folder: Path | None, **options: Any) -> Any:
    """Everything at once: parts, an average, masks with a random key, patience."""
    masks = {"a": jnp.arange(64).reshape(4, 16) % 3 > 0}
    tx = sparse.scheduled(
        optax.adam(optax.cosine_decay_schedule(3e-2, 200)),
        sparse.random_growth(100),
        masks,
        every=7,
    )
    settings = {"optimizer": tx, "epochs": 6, "batch_size": 10, "accumulate": 3}
    settings |= {"ema": 0.95, "patience": 4, "evaluate": evaluate, "progress": False}
    if folder is not None:
        settings |= {"checkpoint": folder / "run", "metrics": folder / "run.jsonl"}
        settings |= {"save_every": 2, "log_every": 4}
    return fit(apply, START, loss, DATA, **{**settings, **options})


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    _ = run(Path(sys.argv[1]), scan=int(sys.argv[2]))
