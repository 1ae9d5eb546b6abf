"""Optimisers, averages and train states are cut along with their parameters."""

import doctest
import importlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import cutjax as cj
from cutjax import sparse
from cutjax.cut_state import cut_state
from cutjax.errors import KeepError, MismatchError
from cutjax.training import step as stepping

RNG = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


FLAT = {"a": draw(3, 8), "bias": draw(8), "age": draw(8, 2), "smile": draw(8, 1)}


def flat(p, x):
    h = jnp.tanh(x @ p["a"] + p["bias"])
    return {"age": h @ p["age"], "smile": h @ p["smile"]}


LINEN = {
    "params": {
        "a": {"kernel": draw(3, 8), "bias": draw(8)},
        "age": {"kernel": draw(8, 2)},
        "smile": {"kernel": draw(8, 1)},
    },
    "batch_stats": {"norm": {"mean": draw(8)}},
}


def linen(p, x):
    w = p["params"]
    h = (
        jnp.tanh(x @ w["a"]["kernel"] + w["a"]["bias"])
        - p["batch_stats"]["norm"]["mean"]
    )
    return {task: h @ w[task]["kernel"] for task in ("age", "smile")}


# In lists nothing can go: what a task does not need is None.
LISTS = [draw(3, 8), [draw(8, 2), {"smile": draw(8, 1)}]]


def lists(p, x):
    h = jnp.tanh(x @ p[0])
    return {"age": h @ p[1][0], "smile": h @ p[1][1]["smile"]}


X = draw(16, 3)
NETS = {"flat": (flat, FLAT), "linen": (linen, LINEN), "lists": (lists, LISTS)}


def case(name):
    apply, params = NETS[name]
    graph = cj.trace(apply, params, X)
    (group,) = graph.free
    return apply, params, graph, {group.name: np.arange(8) % 3 != 1}


def first(params):
    """True for the first leaf only, in a tree of the parameters' structure."""
    leaves, tree = jax.tree.flatten(params)
    return jax.tree.unflatten(tree, [True] + [False] * (len(leaves) - 1))


def labels(params):
    return jax.tree.map(lambda m: "one" if m else "two", first(params))


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(1e-3, mu_dtype=jnp.bfloat16),
    "chain": optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.cosine_decay_schedule(1e-3, 10)),
        optax.ema(0.9),
    ),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),
    "parts": optax.MultiSteps(optax.adam(1e-3), 3),
    "masked": optax.masked(optax.adam(1e-3), first),
    "partition": optax.multi_transform(
        {"one": optax.adam(1e-3), "two": optax.sgd(0.1, 0.9)}, labels
    ),
    "lbfgs": optax.lbfgs(memory_size=4),
    "sm3": optax.sm3(0.1),
    "adafactor": optax.adafactor(1e-3),
    "finite": optax.apply_if_finite(optax.lamb(1e-3), 3),
    "noise": optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.adam(0.1)),
}


@pytest.mark.parametrize("tasks", [None, "age"])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_cut_state_is_one_of_the_cut_parameters(name, net, tasks):
    """The same structure, shapes and types as a state begun with the cut parameters."""
    apply, params, graph, keep = case(net)
    tx = OPTIMIZERS[name]
    _, small = cj.cut(apply, params, graph, keep, tasks)
    got = cut_state(tx.init(params), graph, keep, tasks)
    want = tx.init(small)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert jnp.shape(a) == jnp.shape(b) and a.dtype == b.dtype


@pytest.mark.parametrize("net", NETS)
def test_values_are_those_of_the_kept_channels(net):
    _, params, graph, keep = case(net)
    filled = jax.tree.map(lambda v: v**2, params)
    stacked = jax.tree.map(lambda v: jnp.stack([v, v**2]), params)
    state = {"mu": filled, "count": jnp.int32(3), "memory": stacked, "norm": draw(8)}
    got = cut_state(state, graph, keep)
    want = cj.cut_params(params, graph, keep)
    same(got["mu"], jax.tree.map(lambda v: v**2, want))
    same(got["memory"], jax.tree.map(lambda v: jnp.stack([v, v**2]), want))
    assert got["count"] is state["count"] and got["norm"] is state["norm"]


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_train_state_goes_with_its_parameters():
    class State(TrainState):
        batch_stats: dict

    apply, params, graph, keep = case("linen")
    state = State.create(
        apply_fn=apply, params=params["params"], tx=optax.adam(1e-3),
        batch_stats=params["batch_stats"],
    )  # fmt: skip
    _, small = cj.cut(apply, params, graph, keep, "age")
    got = cut_state(state, graph, keep, "age")
    same(got.params, small["params"])
    same(got.batch_stats, small["batch_stats"])
    grads = jax.tree.map(jnp.ones_like, small["params"])
    assert got.apply_gradients(grads=grads).step == 1
    assert "smile" not in got.opt_state[0].mu


def test_the_loop_of_fit_is_cut_whole():
    apply, params, graph, keep = case("linen")
    make = {"accumulate": 2, "ema": 0.9, "names": ("batch_stats",)}
    tx = optax.adam(1e-3)
    names, options = make.pop("names"), make
    moving = stepping.begin(params, tx, names, **options)
    _, small = cj.cut(apply, params, graph, keep, "age")
    got = cut_state(moving, graph, keep, "age")
    want = stepping.begin(small, tx, names, **options)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, want)


def descend(apply, tx, params, state, steps):
    def loss(p):
        return sum(jnp.mean((v - 1) ** 2) for v in apply(p, X).values())

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("by", ["optimiser", "function"])
def test_training_goes_on_as_if_it_had_not_been_cut(net, by):
    """Masked by the optimiser, or in the function as `schedule.iterate` does late."""
    apply, params, graph, keep = case(net)
    tx, masked = optax.adam(1e-2), lambda p, x: apply(cj.mask(p, graph, keep), x)
    if by == "optimiser":
        tx, masked = sparse.masked(tx, sparse.channel_masks(graph, keep)), apply
    start = cj.mask(params, graph, keep)
    trained, state = descend(masked, tx, start, tx.init(start), 5)
    want, _ = descend(masked, tx, trained, state, 5)
    want = cj.cut_params(want, graph, keep)
    small_apply, small = cj.cut(apply, trained, graph, keep)
    got, _ = descend(small_apply, tx, small, cut_state(state, graph, keep), 5)
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), got, want)
    assert max(jax.tree.leaves(gaps)) < 1e-6
    # The saboteurs: momenta made anew, momenta of other channels.
    other = {name: np.roll(mask, 1) for name, mask in keep.items()}
    right, rolled = (cut_state(state, graph, k) for k in (keep, other))
    if by == "optimiser":
        rolled = right._replace(inner=rolled.inner)
    anew = jax.tree.map(lambda v: v * 0 if v.dtype != bool else v, right)
    for bad in (anew, rolled):
        wrong, _ = descend(small_apply, tx, small, bad, 5)
        gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), wrong, want)
        assert max(jax.tree.leaves(gaps)) > 1e-3


def test_masks_may_leave_paths_out():
    _, params, graph, keep = case("linen")
    masks = {"params": {"a": {"kernel": jnp.ones((3, 8), bool)}}}
    tx = sparse.masked(optax.adam(1e-3), masks)
    got = cut_state(tx.init(params), graph, keep)
    assert sparse.masks_of(got)["params"]["a"]["kernel"].shape == (3, 5)


def test_masks_that_change_keep_their_key():
    _, params, graph, keep = case("flat")
    masks = sparse.channel_masks(graph, keep)
    tx = sparse.scheduled(optax.adam(1e-3), sparse.rigl(10), masks)
    state = tx.init(params)
    got = cut_state(state, graph, keep, "age")
    assert got.key is state.key and "smile" not in got.masks
    assert got.masks["a"].shape == got.inner[0].mu["a"].shape == (3, 5)


def test_paths_of_one_key_are_cut_beside_longer_ones():
    """What `cut_params` does not know, as it goes by the ends of paths."""
    params = {"a": draw(2, 3), "b": {"k": draw(3, 1)}}
    graph = cj.trace(lambda w, x: x @ w["a"] @ w["b"]["k"], params, draw(1, 2))
    keep = {"a:1": np.array([True, False, True])}
    got = cut_state(optax.adam(1e-3).init(params), graph, keep)
    same(got[0].mu, jax.tree.map(jnp.zeros_like, cj.cut_params(params, graph, keep)))


def test_what_ends_alike_by_chance_is_left_alone():
    """Names of parameters, shapes of parameters; but not their structure."""
    _, params, graph, keep = case("flat")
    log = {"a": draw(3, 8), "smile": draw(8, 1)}
    history = {"a": draw(8), "bias": draw(3), "age": {"a": draw(8)}}
    state = {
        "mu": params,
        "log": log,
        "history": history,
        "a": draw(8),
        "b": {"a": log},
    }
    got = cut_state(state, graph, keep)
    assert got["mu"]["a"].shape == (3, 5)
    for name in ("log", "history", "a", "b"):
        assert [*map(id, jax.tree.leaves(got[name]))] == [
            *map(id, jax.tree.leaves(state[name]))
        ]


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_adafactor_that_factors_nothing_is_cut(momentum):
    """In place of the factors are vectors of one number each."""
    tx = optax.adafactor(1e-2, momentum=momentum)
    graph, keep = cj.trace(flat, FLAT, X), {"a:1": np.arange(8) < 3}
    _, state = tx.update(FLAT, tx.init(FLAT), FLAT)
    small = cj.cut_params(FLAT, graph, keep)
    want = tx.update(small, tx.init(small), small)[1]
    got = cut_state(state, graph, keep)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape
    assert np.array_equal(got[0].v["a"], state[0].v["a"][:, :3])


def test_what_fits_is_cut_beside_what_does_not():
    """A leaf of another shape, of a parameter that loses nothing, spoils no other."""
    params, keep = {**FLAT, "c": draw(2)}, {"a:1": np.arange(8) < 3}
    graph = cj.trace(lambda p, x: flat(p, x)["age"] + p["c"], params, X)
    got = cut_state({"avg": {**params, "c": draw(5)}}, graph, keep)["avg"]
    assert np.array_equal(got["a"], FLAT["a"][:, :3]) and got["c"].shape == (5,)


def test_what_lies_below_a_parameter_is_cut_with_it():
    graph, keep = cj.trace(flat, FLAT, X), {"a:1": np.arange(8) < 3}
    rows = jax.tree.map(lambda v: [jnp.arange(n) for n in v.shape], FLAT)
    both = jax.tree.map(lambda v: {"m": v, "n": jnp.zeros(()), "off": None}, FLAT)
    got = cut_state({"rows": rows, "both": both}, graph, keep)
    assert [v.tolist() for v in got["rows"]["a"]] == [[0, 1, 2], [0, 1, 2]]
    assert [v.tolist() for v in got["rows"]["age"]] == [[0, 1, 2], [0, 1]]
    assert np.array_equal(got["both"]["age"]["m"], FLAT["age"][:3])
    assert got["both"]["a"]["off"] is None and got["both"]["a"]["n"] == 0
    blocks = {**both, "a": {"left": draw(3, 3), "right": draw(8, 8)}}
    with pytest.raises(MismatchError, match=r"'p/a/left' is \[3, 3\], but .* 'a' that"):
        cut_state({"p": blocks}, graph, keep)
    # Two trees called like parameters are two trees.
    two = {"a": FLAT, "bias": FLAT, "age": FLAT, "smile": FLAT}
    got = cut_state(two, graph, keep)
    assert all(np.array_equal(v["age"], FLAT["age"][:3]) for v in got.values())


def test_nothing_lost_is_the_same_arrays():
    _, params, graph, _ = case("linen")
    state = optax.adafactor(1e-3, min_dim_size_to_factor=1).init(params)
    got = cut_state(state, graph, {})
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(state), strict=True):
        assert a is b


def test_collections_of_the_same_structure():
    """A copy of the parameters beside them: momenta of either are cut alike."""

    def apply(p, x):
        w, slow = p["params"], p["slow"]
        return jnp.tanh(x @ w["a"] + x @ slow["a"]) @ (w["b"] + slow["b"])

    one = {"a": draw(3, 8), "b": draw(8, 2)}
    params = {"params": one, "slow": one}
    graph = cj.trace(apply, params, X)
    keep = {graph.free[0].name: np.arange(8) < 5}
    got = cut_state(optax.adam(1e-3).init(one), graph, keep)
    assert got[0].mu["a"].shape == (3, 5)

    def apart(p, x):
        return sum(jnp.tanh(x @ w["a"]) @ w["b"] for w in p.values())

    graph = cj.trace(apart, params, X)
    keep = {"params/a:1": np.arange(8) < 5}
    with pytest.raises(
        MismatchError, match="'0/mu' mirrors 'params' as well as 'slow'"
    ):
        cut_state(optax.adam(1e-3).init(one), graph, keep)
    got = cut_state({"slow": one, "params": one}, graph, keep)
    assert got["slow"]["a"].shape == (3, 8) and got["params"]["a"].shape == (3, 5)


class Extra(NamedTuple):
    mu: dict
    count: int = 0


def test_states_that_do_not_fit_are_refused():
    _, params, graph, keep = case("linen")
    factored = optax.adafactor(1e-3, min_dim_size_to_factor=1).init(params)
    with pytest.raises(MismatchError, match=r"'0/v_row/.*kernel' is \[3\], but"):
        cut_state(factored, graph, keep)
    vector = optax.flatten(optax.adam(1e-3)).init(params)
    with pytest.raises(MismatchError, match=r"'0/mu' holds 64 numbers.*one vector"):
        cut_state(vector, graph, keep)
    other = {**params["params"], "extra": {"kernel": draw(2, 2)}}
    with pytest.raises(MismatchError, match=r"'mu'.*'extra/kernel' is none"):
        cut_state(Extra(other), graph, keep)
    few = {k: v for k, v in params["params"].items() if k != "smile"}
    with pytest.raises(MismatchError, match=r"'mu'.*'smile/kernel' is missing"):
        cut_state(Extra(few), graph, keep)
    with pytest.raises(KeepError, match="no task 'hair'"):
        cut_state(factored, graph, keep, "hair")
    with pytest.raises(KeepError, match="no group"):
        cut_state(factored, graph, {"b:1": np.ones(3, bool)})


@pytest.mark.parametrize(
    "state", [{"mu": {"w": draw(3, 8)}}, Extra({"a": draw(4, 4)}), [jnp.ones(3, bool)]]
)
def test_arrays_of_which_none_is_known_are_refused(state):
    """Once they came back whole, without a word."""
    _, _, graph, keep = case("linen")
    with pytest.raises(MismatchError, match="nothing in this state is like the param"):
        cut_state(state, graph, keep)
    assert cut_state(state, graph, {}) is not None


@pytest.mark.parametrize("state", [optax.sgd(0.1).init({}), jnp.int32(3), ()])
def test_states_without_arrays_stay(state):
    _, _, graph, keep = case("linen")
    assert cut_state(state, graph, keep) == state


class Normed(nnx.Module):
    """Statistics, which no optimiser has, lie beside scales and biases."""

    def __init__(self, normed: bool):
        self.a = nnx.Linear(3, 8, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(8, rngs=nnx.Rngs(1)) if normed else jnp.tanh
        self.b = nnx.Linear(8, 2, rngs=nnx.Rngs(2))

    def __call__(self, x):
        return self.b(jnp.tanh(self.norm(self.a(x))))


def weights(model):
    return nnx.state(model, nnx.Param)


def trained(model):
    tx = optax.chain(optax.masked(optax.adam(0.1), first), optax.adam(0.1))
    return nnx.Optimizer(model, tx, wrt=nnx.Param)


STATES = {
    "state": lambda model: optax.adam(0.1).init(weights(model)),
    "pure": lambda model: optax.adam(0.1).init(nnx.to_pure_dict(weights(model))),
    "within": lambda model: trained(model).opt_state,
    "optimizer": lambda model: nnx.state(trained(model)),
}


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("name", STATES)
def test_states_of_nnx(name, normed):
    model = Normed(normed)
    graph = cj.nnx.trace(model, X)
    (group,) = graph.free
    keep = {group.name: np.arange(8) % 3 != 1}
    small = cj.nnx.cut(model, graph, keep)
    full, want = (STATES[name](m) for m in (model, small))
    got = cut_state(jax.tree.map(lambda v: v + 1, full), graph, keep)
    same(got, jax.tree.map(lambda v: v + 1, want))


@pytest.mark.parametrize("pure", [True, False])
def test_parameters_that_are_a_state_of_nnx(pure):
    graphdef, params = nnx.split(Normed(False))
    graph = cj.trace(lambda p, x: nnx.merge(graphdef, p)(x), params, X)
    keep = {graph.free[0].name: np.arange(8) % 3 != 1}
    state = optax.adam(0.1).init(nnx.to_pure_dict(params) if pure else params)
    got = cut_state(state, graph, keep)
    found = {jnp.shape(v) for v in jax.tree.leaves(got)}
    assert found == {(), (3, 5), (5,), (5, 2), (2,)}


def test_parameters_of_one_array():
    graph = cj.trace(lambda w, x: x @ w, draw(3, 8), X)
    state = optax.adam(1e-3).init(draw(3, 8))
    assert cut_state(state, graph, {})[0].mu is state[0].mu


@pytest.mark.parametrize(
    "name", ["cut_state", "fit", "training.parts", "training.record"]
)
def test_doctests(name):
    module = importlib.import_module(f"cutjax.{name}")
    done = doctest.testmod(module)
    assert done.attempted and not done.failed
