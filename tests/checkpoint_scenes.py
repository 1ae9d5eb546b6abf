"""A model whose kept channels show, saved once; helpers for tests of checkpoints."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cutjax as cj
from cutjax import checkpoint
from cutjax.checkpoint import load, save


def assert_same(a, b):
    """Same containers, types, dtypes and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (type(x), x.dtype, x.shape) == (type(y), y.dtype, y.shape)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def weighted(params, x):
    """The channels are told apart by a constant: which ones stay shows."""
    h = jax.nn.relu(x @ params["w1"]) * jnp.arange(1.0, 9.0)
    return {"y": h @ params["w2"], "z": h @ params["head"]["w"]}


X = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)


def weights():
    rng = np.random.default_rng(0)
    shapes = {"w1": (3, 8), "w2": (8, 2), "head": {"w": (8, 5)}}
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32),
        shapes,
        is_leaf=lambda s: isinstance(s, tuple),
    )


@pytest.fixture(scope="module")
def small():
    graph = cj.trace(weighted, weights(), X)
    keep = {"w1:1": np.array([1, 0, 1, 1, 0, 0, 1, 0], bool)}
    return graph, keep, *cj.cut(weighted, weights(), graph, keep)


@pytest.fixture(scope="module")
def saved(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    save(path, small[3], graph=small[0], keep=small[1], provenance={"seed": 7})
    return path


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


def tamper(path, change, sign=False):
    """Edits the metadata; with `sign` as somebody would who knows how it is checked."""
    file = path / "_CHECKPOINT_METADATA"
    whole = json.loads(file.read_text())
    body = whole["custom_metadata"]["cutjax"]
    change(body)
    if sign:
        del body["digest"]
        body["digest"] = checkpoint._digest(body)
    file.write_text(json.dumps(whole))


def check_round_trip(path, small):
    _, _, apply, params = small
    again, loaded, _ = load(path, weighted)
    assert_same(params, loaded)
    assert_same(apply(params, X), again(loaded, X))


@jax.tree_util.register_pytree_with_keys_class
class Head:
    def __init__(self, w):
        self.w = w

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("w"), self.w)], None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)
