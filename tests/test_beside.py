"""Optimisers that hold a tree of the parameters, beside what training adds to them."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import optax
import pytest
from test_kinds import linear, pair

from cutjax.data import Split
from cutjax.recover.distill import teach
from cutjax.recover.finetune import finetune, frozen


@pytest.mark.parametrize("more", ["parent", "balance", "both"])
@pytest.mark.parametrize("form", ["tree", "function", "state"])
def test_an_optimiser_sees_no_more_than_the_parameters(form, more):
    x, parent, child = pair((4, 3))
    child |= {"held": np.ones(3, np.float32)}
    apply = lambda p, x: {"a": x @ p["w"] + 0 * p["held"]}  # noqa: E731
    names = {"w": "moved", "held": "still"}
    chosen: dict[Hashable, optax.GradientTransformation] = {
        "moved": optax.adam(1e-2),
        "still": optax.set_to_zero(),
    }
    label = (lambda p: {k: names[k] for k in p}) if form == "function" else names
    tx = optax.multi_transform(chosen, label)
    options = {"parent": (linear, parent)} if more != "balance" else {}
    options |= {"balance": "famo"} if more != "parent" else {}
    options |= {"opt_state": tx.init(child)} if form == "state" else {}
    data = teach(linear, parent, Split(x, {}), tasks="a")
    kept = {"tasks": "a", "epochs": 1, "batch_size": 32, "progress": False}
    got, _ = finetune(frozen(apply), child, data, optimizer=tx, **options, **kept)
    np.testing.assert_array_equal(got["held"], child["held"])
    # Adam does not look at the weight of the one task.
    want, _ = finetune(frozen(apply), child, data, optimizer=tx, **kept)
    np.testing.assert_allclose(got["w"], want["w"], atol=1e-5)


@pytest.mark.parametrize("balance", ["uniform", "famo"])
def test_a_line_search_beside_a_parent_evaluates_the_loss_of_the_parameters(balance):
    x, parent, child = pair()
    _, info = finetune(
        frozen(linear), child, Split(x, {}), tasks="a", epochs=8, batch_size=64,
        parent=(linear, parent), balance=balance, kinds={"a": "numbers"},
        optimizer=optax.lbfgs(), progress=False,
    )  # fmt: skip
    assert info.history[-1]["a"] < 1e-3 * info.history[1]["a"]
