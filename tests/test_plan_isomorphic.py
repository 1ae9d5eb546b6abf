"""Classes of isomorphic groups: on nets whose repetition is known, and renamed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import large
import pytest
from nets import NETS

import cutjax as cj
from cutjax.isomorphic import classes


def graph_of(name: str) -> cj.Graph:
    net = NETS[name]()
    return cj.trace(net.apply, net.params, *net.inputs)


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_linen", "densenet", "mlp_tasks", "llama", "mobilenet"]
)
def test_classes_divide_the_free_groups(name):
    graph = graph_of(name)
    found = classes(graph)
    assert sorted(n for names in found for n in names) == sorted(
        g.name for g in graph.free
    )
    assert all(found)


def test_blocks_of_a_resnet_are_one_class_and_streams_others():
    model = large.resnet(3, 4, 6, 3)
    graph = cj.trace(model.apply, model.params, *model.inputs)
    sizes = sorted(len(names) for names in classes(graph))
    # 16 blocks with two hidden groups each; the stem; streams of 3, 4, 6, 3 blocks.
    assert sizes == [1, 1, 1, 1, 1, 32]


def test_layers_of_a_transformer_match_part_by_part():
    for names in classes(graph_of("vit_linen")):
        if len(names) > 1:
            kinds = {n.split("/", 2)[-1] for n in names}
            assert len(names) == 2 and len(kinds) == 1, names


def blocks(p, x):
    for block in p["blocks"]:
        x = x + jnp.tanh(x @ block["up"]) @ block["down"]
    return x @ p["head"]


def params(*widths: int):
    made = [{"up": jnp.ones((3, n)), "down": jnp.ones((n, 3))} for n in widths]
    return {"blocks": made, "head": jnp.ones((3, 2))}


def test_neither_sizes_nor_names_count_but_pins_do():
    x = jnp.ones((1, 3))
    graph = cj.trace(blocks, params(8, 5, 9), x)
    assert [len(names) for names in classes(graph)] == [3]

    def renamed(p, x):
        return blocks({"blocks": [p["c"], p["a"], p["b"]], "head": p["z"]}, x)

    p = params(8, 5, 9)
    a, b, c = p["blocks"]
    graph = cj.trace(renamed, {"a": a, "b": b, "c": c, "z": p["head"]}, x)
    assert [len(names) for names in classes(graph)] == [3]

    def chain(p, x):
        for w in p:
            x = jnp.tanh(x @ w)
        return x

    ws = [jax.ShapeDtypeStruct((8, 8), jnp.float32)] * 6
    x = jnp.ones((1, 8))
    assert [len(n) for n in classes(cj.trace(chain, ws, x))] == [1, 3, 1]
    pinned = cj.trace(chain, ws, x, pin="2:1")
    # (in) -> 0 -> 1 -> (2) -> 3 -> 4 -> (out): two after, two before a pinned group.
    assert classes(pinned) == (("0:1", "3:1"), ("1:1", "4:1"))
