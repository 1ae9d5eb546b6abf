"""The demo on a tiny parent: every recipe, the rows that are written, the table."""

import json

import numpy as np
import optax
import pytest

from cutjax import demo, demo_table
from cutjax.budget import Budget
from cutjax.data import digits_scenes
from cutjax.models import MultiTaskResNet, eval_apply, init, train_apply
from cutjax.trace import trace

RECIPES = (
    "uniform",
    "random",
    "l1",
    "taylor",
    "random+compensation",
    "taylor+compensation",
    "joint+compensation",
    "cutjax",
)


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    sizes = {"train": 128, "calibration": 64, "validation": 32, "test": 32}
    data = digits_scenes(sizes=sizes)
    model = MultiTaskResNet(data.tasks, widths=(8, 12), blocks=(1, 1))
    params, apply = init(model, data.train.x[:1]), eval_apply(model)
    graph = trace(apply, params, data.train.x[:1])

    def loss(logits, labels):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    losses = dict.fromkeys(data.tasks, loss)
    job = demo.Job(apply, train_apply(model), params, data, graph, losses)
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "prepare", lambda folder, progress: job)
        patch.setattr(demo, "SUBSETS", (("left", "larger"),))
        patch.setattr(demo, "BUDGETS", (Budget(params=0.5),))
        found = demo.demo(out, seeds=1, progress=False)
    assert json.loads((out / "results.json").read_text()) == found
    return found


def test_every_recipe_has_a_row_with_what_was_promised(rows):
    assert [row["recipe"] for row in rows] == ["parent", *RECIPES]
    parent, *others = rows
    for row in rows:
        assert row["tasks"] == ["left", "larger"] == list(row["metrics"])
        assert all(0 <= value <= 100 for value in row["metrics"].values())
        assert row["latency_ms"] > 0 and row["seed"] == 0
    for row in others:
        assert row["params"] <= 0.5 * parent["params"]
        assert row["trunk_params"] < row["params"]
        assert row["flops"] < parent["flops"]


def test_the_table_gives_means_and_spreads(rows, capsys):
    parent, *others = rows
    twice = [parent, *others, *({**row, "seed": 1} for row in others)]
    for row in twice[-len(RECIPES) :]:
        row["metrics"] = {task: value + 2 for task, value in row["metrics"].items()}
    demo_table.show(twice)
    text = capsys.readouterr().out
    for recipe in RECIPES:
        (line,) = [x for x in text.splitlines() if f"│ {recipe} " in x]
        assert "± 1.41" in line
    assert f"{np.mean(list(parent['metrics'].values())):.2f}" in text
