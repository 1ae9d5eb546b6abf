"""Every way to call merges wrongly: what was given, and the call that would work."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import cutjax as cj
from cutjax import merge
from cutjax.errors import CutjaxError, DataError, KeepError, MismatchError

X = jax.random.normal(jax.random.key(9), (8, 4))
G, N = "a:1", 6


def apply(p: Any, x: Any) -> Any:
    return jax.nn.relu(x @ p["a"]) @ p["b"]


def params(seed: int) -> dict[str, jax.Array]:
    a, b = jax.random.split(jax.random.key(seed))
    return {"a": jax.random.normal(a, (4, N)), "b": jax.random.normal(b, (N, 3))}


P = {"one": params(0), "two": params(1)}
GRAPH = cj.trace(apply, P["one"], X)
NETS = {name: merge.Network(apply, p, GRAPH) for name, p in P.items()}
ORDERS, _ = merge.align_all(GRAPH, P)
SHARED = merge.from_permutations(GRAPH, ORDERS)
APART = merge.until(GRAPH, list(P), {}, [])
SCORES = {name: {G: np.arange(N) + 1.0} for name in P}
VECTORS = merge.vectors(P["one"], {"t": P["two"]})

align: Any = functools.partial(
    merge.align, GRAPH, P["one"], P["two"], apply=apply, progress=False
)
align_all: Any = functools.partial(merge.align_all, GRAPH, progress=False)
correlations: Any = functools.partial(merge.correlations, progress=False)
least_squares: Any = functools.partial(
    merge.least_squares, NETS, SHARED, progress=False
)
pam: Any = functools.partial(merge.pam, NETS, progress=False)
tied: Any = functools.partial(merge.tied, NETS, {}, progress=False)


@functools.cache
def merged() -> merge.Merged:
    return merge.average(NETS, APART, X)


def programs() -> merge.Programs:
    return merge.programs(merged(), X)


ONE = P["one"]
RAW = "{name: merge.Network(apply, params, graph), ...}"
CALLS: dict[str, tuple[type[CutjaxError], str, Callable[[], Any]]] = {
    # Networks by name.
    "networks, a list": (
        *(MismatchError, f"networks is a list of 2; pass {RAW}"),
        lambda: merge.average([*NETS.values()], SHARED, X),  # type: ignore[arg-type]
    ),
    "networks, bare parameters": (
        *(MismatchError, "networks['one'] is {'a': float32[4, 6], 'b': float32"),
        lambda: merge.average(P, SHARED, X),  # type: ignore[arg-type]
    ),
    "networks, numbered": (
        *(MismatchError, "networks has the name 0; names are strings"),
        lambda: merge.average(dict(enumerate(NETS.values())), {}, X),  # type: ignore[arg-type]
    ),
    "aligned, a list": (
        *(MismatchError, "networks is a list of 2; pass {name: params, ...}"),
        lambda: align_all([*P.values()]),
    ),
    "aligned, networks": (
        *(MismatchError, "networks['one'] is a Network; pass {name: network.params"),
        lambda: align_all(NETS),
    ),
    "aligned, none": (
        *(MismatchError, "no networks; pass {name: params, ...}"),
        lambda: align_all({}),
    ),
    "correlated, none": (
        *(MismatchError, "no networks; pass {name: params, ...}"),
        lambda: correlations(apply, GRAPH, {}, [X]),
    ),
    "tuned, a list": (
        *(MismatchError, "networks or vectors is a list of 1; pass {name: ..., ...}"),
        lambda: merge.vectors(ONE, [ONE]),  # type: ignore[arg-type]
    ),
    "permutations of one network": (
        *(MismatchError, "permutations['a:1'] is int64[6]; pass {network: {group"),
        lambda: merge.from_permutations(GRAPH, ORDERS["two"]),  # type: ignore[arg-type]
    ),
    "permutations, none": (
        *(MismatchError, "no permutations; pass {network: {group"),
        lambda: merge.from_permutations(GRAPH, {}),
    ),
    "tied, a list": (
        *(MismatchError, "batches is a list of 1; pass {network: [(x, ...), ...], ..."),
        lambda: tied([X]),
    ),
    "each its input, one": (
        *(MismatchError, "inputs is float32[8, 4]; pass {task: input, ...}"),
        lambda: merge.each_its_input(merged().apply)(merged().params, X),  # type: ignore[arg-type]
    ),
    "sharing, an array for a group": (
        *(KeepError, "sharing['a:1'] is int64[6]; pass {network: slots}"),
        lambda: merge.average(NETS, {G: np.arange(N)}, X),  # type: ignore[dict-item]
    ),
    "sharing, a list": (
        *(KeepError, "sharing is a list of 1; pass {group: {network: slots}}"),
        lambda: merge.average(NETS, [G], X),  # type: ignore[arg-type]
    ),
    "merged, parameters alone": (
        *(KeepError, "merged is {'own': {'one': {'a': float32[4, 6]"),
        lambda: least_squares([X], merged=merged().params["params"]),
    ),
    "a damping in words": (
        *(DataError, "damping=auto: give a number above 0"),
        lambda: least_squares([X], damping="auto"),
    ),
    "a share in words": (
        *(KeepError, "shared=half is no share of 0 ... 1"),
        lambda: pam(SCORES, [X], shared="half"),
    ),
    "scales in words": (
        *(MismatchError, "scale='1': give a number for each vector, or one"),
        lambda: merge.arithmetic(P["one"], VECTORS, "1"),  # type: ignore[arg-type]
    ),
    # Functions and inputs.
    "a function is missing": (
        *(KeepError, "no function of 'two' in apply; known: 'one'"),
        lambda: align_all(P, apply={"one": apply}, batches=[X]),
    ),
    "three functions": (
        *(KeepError, "apply is a tuple of 3; pass one function, or a pair (a, b)"),
        lambda: align(apply=(apply, apply, apply), batches=[X]),
    ),
    "average, wrong width": (
        *(MismatchError, "apply(params, float32[8, 2]): TypeError: dot_general"),
        lambda: merge.average(NETS, SHARED, X[:, :2]),
    ),
    "average, labels": (
        *(MismatchError, "3 were given; it was traced with (float32[8, 4])"),
        lambda: merge.average(NETS, SHARED, (X, np.zeros(8, np.float32))),
    ),
    "average, no inputs": (
        *(MismatchError, "apply(params, None)"),
        lambda: merge.average(NETS, SHARED, None),
    ),
    "fitted, wrong width": (
        *(MismatchError, "traced with (float32[8, 4])"),
        lambda: least_squares([X[:, :2]]),
    ),
    "aligned, wrong width": (
        *(MismatchError, "apply(params, float32[8, 3])"),
        lambda: align(batches=[X[:, :3]]),
    ),
    "a program, wrong width": (
        *(MismatchError, "apply(params, float32[8, 2])"),
        lambda: programs()["one"](merged().params, X[:, :2]),
    ),
    "a program, no inputs": (
        *(MismatchError, "apply(params): TypeError"),
        lambda: programs()["one"](merged().params),
    ),
    "a program by number": (
        *(KeepError, "no task 0; known: 'one', 'two'"),
        lambda: programs()[0],  # type: ignore[index]
    ),
    # Batches.
    "fitted, a dict as a batch": (
        *(MismatchError, "apply(params, {'x': float32[8, 4], 'y': int32[]})"),
        lambda: least_squares([{"x": X, "y": 0}]),
    ),
    "aligned, a dict as a batch": (
        *(MismatchError, "apply(params, {'x': float32[8, 4]})"),
        lambda: align(batches=[{"x": X}]),
    ),
    **{
        f"{name}, an array": (
            *(DataError, "batches is float32[8, 4]; pass an iterable of batches"),
            functools.partial(call, X),
        )
        for name, call in {
            "least_squares": least_squares,
            "mtz": functools.partial(merge.mtz, NETS, SHARED, progress=False),
            "repair": functools.partial(merge.repair, NETS, SHARED, progress=False),
            "align": lambda x: align(batches=x),
            "correlations": lambda x: correlations(apply, GRAPH, P, x),
            "pam": lambda x: pam(SCORES, x, alpha=0.1),
            "tied": lambda x: tied({"one": x, "two": x}),
        }.items()
    },
    "fitted, no batches": (
        *(DataError, "batches is None; pass an iterable"),
        lambda: least_squares(None),
    ),
    # Numbers.
    "no rows": (
        *(DataError, "rows=0: give a number above 0"),
        lambda: least_squares([X], rows=0),
    ),
    "fewer rows": (
        *(DataError, "rows=-3: give a number above 0"),
        lambda: tied({"one": [X], "two": [X]}, rows=-3),
    ),
    "alpha": (
        *(KeepError, "alpha is NaN"),
        lambda: pam(SCORES, [X], alpha=float("nan")),
    ),
    "seed": (
        *(KeepError, "seed=-1: give a whole number, 0 or more"),
        lambda: merge.align(GRAPH, ONE, ONE, seed=-1),
    ),
    "scale, a list": (
        *(MismatchError, "scale is a list of 2; pass one number for all, or {'t': ..."),
        lambda: merge.arithmetic(ONE, VECTORS, [1, 2]),  # type: ignore[arg-type]
    ),
    "one name twice": (
        *(KeepError, "names hold 'one' twice"),
        lambda: merge.zipit(GRAPH, {G: np.eye(2 * N)}, ["one", "one"]),
    ),
    "activations of one channel": (
        *(DataError, "activations are float64[4]; pass [N, n]"),
        lambda: merge.information(np.arange(4.0), np.arange(4) % 2),
    ),
    "variance": (
        *(DataError, "variance=0.0: give a number above 0"),
        lambda: merge.information(np.eye(4), np.arange(4) % 2, variance=0.0),
    ),
    # Scores.
    "scores by task": (
        *(DataError, "by task, of 'output'; pass those of one task: {'one': saliency("),
        lambda: pam({n: {"output": s} for n, s in SCORES.items()}, alpha=0.1),
    ),
    "short scores": (
        *(DataError, "'a:1' of 'two' has float64[3], a value for each of so many chan"),
        lambda: pam({**SCORES, "two": {G: np.ones(3)}}, alpha=0.1),
    ),
}


def cast() -> dict[str, merge.Network]:
    """Networks of bfloat16, with the graph of one of float32 and a bias."""
    low = {k: v.astype(jnp.bfloat16) for k, v in {**ONE, "c": jnp.ones(N)}.items()}
    return dict.fromkeys(("one", "two"), merge.Network(biased, low, BIASED))


def biased(p: Any, x: Any) -> Any:
    return jax.nn.relu(x @ p["a"] + p["c"]) @ p["b"]


BIASED = cj.trace(biased, {**ONE, "c": jnp.ones(N)}, X)


def averaged(nets: dict[str, merge.Network]) -> Any:
    found = merge.average(nets, {}, X)
    return found.apply(found.params, X)


EVALUATED: dict[str, Callable[[dict[str, merge.Network]], Any]] = {
    "average": averaged,
    "repair": lambda nets: merge.repair(nets, {}, [X], progress=False),
    "tied": lambda nets: merge.tied(
        nets, {}, {name: [X] for name in nets}, progress=False
    ),
    "compensate": lambda nets: cj.compensate(
        *(biased, nets["one"].params, BIASED, {G: np.arange(N) > 1}, [X]),
        progress=False,
    ),
}


@pytest.mark.parametrize("way", EVALUATED)
def test_parameters_of_another_dtype_than_traced_are_named(way):
    nets = cast()
    with pytest.raises(MismatchError, match="'a' is bfloat16, traced as float32; "):
        EVALUATED[way](nets)
    small = cj.cut_params(nets["one"].params, BIASED, {G: np.arange(N) > 1})
    assert small["a"].dtype == jnp.bfloat16 and small["a"].shape == (4, N - 2)


def test_a_head_more_is_named():
    def two(p: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ p["a"])
        return {"cls": h @ p["b"], "reg": h @ p["z"]}

    p = {**P["two"], "z": jnp.ones((N, 1))}
    nets = {"one": NETS["one"], "t": merge.Network(two, p, cj.trace(two, p, X))}
    said = r"'t' answers cls, reg; 'one' answers output\n.*cj.select"
    with pytest.raises(MismatchError, match=said):
        merge.average(nets, {}, X)


def test_networks_of_other_types_say_so():
    def cast(p: Any, x: Any) -> Any:
        return apply(p, x.astype(p["a"].dtype))

    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), P["two"])
    given = {"one": P["one"], "two": half}
    nets = {n: merge.Network(cast, p, cj.trace(cast, p, X)) for n, p in given.items()}
    with pytest.raises(MismatchError, match="'a' is float32 in 'one' and bfloat16 in"):
        merge.average(nets, {}, X)


def test_answers_of_one_name_are_not_lost():
    def several(names: Any, p: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ p["a"])
        return {name: h @ p["b"] for name in names}

    nets = {}
    for name, tasks in {"a": ("b/c", "d"), "a/b": ("c", "d")}.items():
        fn = functools.partial(several, tasks)
        nets[name] = merge.Network(fn, P["one"], cj.trace(fn, P["one"], X))
    both = merge.average(nets, {}, X)
    with pytest.raises(MismatchError, match="two networks answer 'a/b/c'"):
        both.apply(both.params, X)


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """Annotations are not checked where cutjax is used."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize("mistake", CALLS)
def test_what_was_given_and_what_would_work(mistake):
    kind, said, call = CALLS[mistake]
    with pytest.raises(kind, match=re.escape(said)):
        call()


def test_several_inputs_and_dicts_that_are_taken_stay_good():
    def pair(p: Any, x: Any, y: Any) -> Any:
        return apply(p, x["a"] + y)

    graph = cj.trace(pair, ONE, {"a": X}, X)
    nets = {name: merge.Network(pair, p, graph) for name, p in P.items()}
    data = [(({"a": X}, X), "label")]
    _ = merge.align_all(graph, P, apply=pair, batches=data, progress=False)
    found = merge.least_squares(nets, {}, data, progress=False)
    assert set(found.apply(found.params, {"a": X}, X)) == {"one", "two"}


def test_parameters_of_one_place_are_refused():
    """A leaf in no collection stands in `params` of the merged tree."""

    def deep(p: Any, x: Any) -> Any:
        return jax.nn.relu(x @ p["a"]) @ p["params"]["a"]

    p = {"a": ONE["a"], "params": {"a": ONE["b"]}}
    net = merge.Network(deep, p, cj.trace(deep, p, X))
    with pytest.raises(MismatchError, match="'a' and 'params/a' would have one place"):
        merge.average({"one": net, "two": net}, {}, X)


def test_outputs_of_another_number_are_named_first():
    def more(p: Any, x: Any) -> Any:
        return {"y": apply(p, x), "z": jnp.tanh(apply(p, x))}

    other = merge.Network(more, P["two"], cj.trace(more, P["two"], X))
    with pytest.raises(MismatchError, match="alike: they return 1 and 2 arrays; "):
        merge.average({"one": NETS["one"], "two": other}, {}, X)
