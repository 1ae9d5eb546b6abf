"""Every way to call cutjax wrongly: the error says what, where, and what works."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive

import cutjax as cj
from cutjax.errors import (
    BudgetError,
    CutjaxError,
    DataError,
    KeepError,
    MismatchError,
    TraceError,
)

X = jnp.ones((2, 3))
HERE = "test_errors.py"


def apply(p: Any, x: jax.Array) -> dict[str, jax.Array]:
    h = jax.nn.relu(x @ p["trunk"]["kernel"] + p["trunk"]["bias"])
    return {"age": h @ p["age"], "smile": jnp.tanh(h @ p["wide"]) @ p["smile"]}


PARAMS = {
    "trunk": {"kernel": jnp.ones((3, 6)), "bias": jnp.ones(6)},
    "age": jnp.ones((6, 1)),
    "wide": jnp.ones((6, 5)),
    "smile": jnp.ones((5, 2)),
}
TRUNK = "trunk/kernel:1"


@pytest.fixture(scope="module")
def graph() -> cj.Graph:
    return cj.trace(apply, PARAMS, X)


def mse(out: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.mean((out - target) ** 2)


LOSSES = {"age": mse, "smile": mse}
DATA = [(X, {"age": jnp.zeros((2, 1)), "smile": jnp.zeros((2, 2))})]


def keep_of(**masks: Any) -> dict[str, np.ndarray]:
    return {TRUNK: np.array([1, 1, 0, 1, 0, 1], bool), **masks}


def test_all_errors_are_value_errors_of_one_family():
    for error in (BudgetError, DataError, KeepError, MismatchError, TraceError):
        assert issubclass(error, CutjaxError) and issubclass(error, ValueError)


# Tasks. -----------------------------------------------------------------------------


def test_an_unknown_task(graph):
    want = "no task 'smlie'; nearest: 'smile'"
    scores = cj.random(None, None, graph)
    for call in (
        lambda: cj.cut(apply, PARAMS, graph, keep_of(), tasks=("age", "smlie")),
        lambda: cj.cut(apply, PARAMS, graph, keep_of(), tasks="smlie"),
        lambda: cj.select(apply, "smlie")(PARAMS, X),
        lambda: graph.cost(tasks=("smlie",)),
        lambda: cj.plan(graph, scores, tasks="smlie", budget=cj.Budget(params=0.5)),
        lambda: cj.taylor(apply, PARAMS, graph, {"smlie": mse}, DATA),
        lambda: cj.compensate(apply, PARAMS, graph, keep_of(), DATA, tasks="smlie"),
    ):
        with pytest.raises(KeepError, match=want):
            call()
    with pytest.raises(KeepError, match=r"no task chosen.*\['age', 'smile'\]"):
        cj.cut(apply, PARAMS, graph, keep_of(), tasks=())


# Budgets. ---------------------------------------------------------------------------


def test_a_budget_below_the_floors_says_the_least_possible(graph):
    scores = cj.random(None, None, graph)
    with pytest.raises(BudgetError) as caught:
        cj.plan(graph, scores, budget=cj.Budget(params=0.1, floor=3))
    # Three channels each: 3 x 3 + 3, 3 x 1, 3 x 3, 3 x 2 of 18 + 6 + 6 + 30 + 10.
    said = str(caught.value)
    assert "the least is 30 (0.429 of 70) with floor=3" in said
    assert "try Budget(params=0.429)" in said
    keep, info = cj.plan(graph, scores, budget=cj.Budget(params=0.429, floor=3))
    assert info.cost.params == 30 and keep[TRUNK].sum() == 3


# Parameters. ------------------------------------------------------------------------


def without(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in tree.items() if k != name}


WRONG = {
    "missing": (without(PARAMS, "age"), "'age' is missing"),
    "extra": ({**PARAMS, "more": jnp.ones(2)}, "'more' is not in the graph"),
    "shape": (
        {**PARAMS, "age": jnp.ones((7, 1))},
        r"'age' is \[7, 1\], not \[6, 1\]",
    ),
    "transposed": (
        {**PARAMS, "wide": jnp.ones((5, 6))},
        r"'wide' is \[5, 6\], not \[6, 5\]",
    ),
    "list": (
        list(PARAMS.values()),
        "missing",
    ),
    "tuple": (
        {**PARAMS, "trunk": tuple(PARAMS["trunk"].values())},
        "'trunk/kernel' is missing",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_parameters_that_do_not_match_the_graph(graph, wrong):
    params, want = WRONG[wrong]
    want = f"do not match the graph: .*{want}"
    calls = [
        lambda: cj.cut(apply, params, graph, keep_of()),
        lambda: cj.l1(None, params, graph),
        lambda: cj.compensate(apply, params, graph, keep_of(), DATA, progress=False),
    ]
    if wrong not in ("missing", "extra"):
        # These two take any pytree that mirrors the parameters, such as momenta.
        calls.append(lambda: cj.mask(params, graph, keep_of()))
        calls.append(lambda: cj.cut_params(params, graph, keep_of()))
    for call in calls:
        with pytest.raises(MismatchError, match=want):
            call()


def test_what_holds_no_parameter_at_all_cannot_be_cut(graph):
    for other in ({"foreign": jnp.ones(6)}, [jnp.ones(6)], jnp.ones(6)):
        with pytest.raises(MismatchError, match="do not match the graph"):
            cj.cut_params(other, graph, keep_of())


@pytest.mark.parametrize("criterion", [cj.taylor, cj.fisher, cj.joint])
@pytest.mark.parametrize("wrong", ["missing", "shape"])
def test_criteria_check_the_parameters(graph, criterion, wrong):
    params, _ = WRONG[wrong]
    with pytest.raises(MismatchError, match="'age' is"):
        criterion(apply, params, graph, LOSSES, DATA, progress=False)


def test_other_containers_with_equal_leaves(graph):
    class Bag(dict):
        pass

    jax.tree_util.register_pytree_with_keys(
        Bag,
        lambda b: (
            [(jax.tree_util.DictKey(k), b[k]) for k in sorted(b)],
            tuple(sorted(b)),
        ),
        lambda keys, values: Bag(zip(keys, values, strict=True)),
    )
    with pytest.raises(MismatchError, match="the containers differ"):
        cj.compensate(apply, Bag(PARAMS), graph, keep_of(), DATA, progress=False)
    with pytest.raises(MismatchError, match="the containers differ"):
        cj.l1(None, Bag(PARAMS), graph)


def test_the_small_function_wants_the_small_parameters(graph):
    small_apply, small = cj.cut(apply, PARAMS, graph, keep_of())
    assert small_apply(small, X)["age"].shape == (2, 1)
    with pytest.raises(
        MismatchError, match=r"not the cut parameters: .*\[6, 1\], not \[4"
    ):
        small_apply(PARAMS, X)
    with pytest.raises(MismatchError, match="'age' is missing"):
        small_apply(without(small, "age"), X)
    with pytest.raises(MismatchError, match="'more' is not a parameter"):
        small_apply({**small, "more": jnp.ones(2)}, X)


def test_many_mismatches_are_counted_not_listed(graph):
    params = jax.tree.map(lambda v: jnp.ones((*v.shape, 2)), PARAMS)
    with pytest.raises(MismatchError, match=r"and 1 more$"):
        cj.cut_params(params, graph, keep_of())


def test_two_parameters_of_one_name():
    twice = {"a/b": jnp.ones((3, 8)), "a": {"b": jnp.ones((8, 2))}}
    with pytest.raises(TraceError, match=r"'a/b': \['a'\]\['b'\] and \['a/b'\]"):
        cj.trace(lambda p, x: jnp.tanh(x @ p["a/b"]) @ p["a"]["b"], twice, X)


def test_a_parameter_that_is_no_array():
    with pytest.raises(MismatchError, match=r"'rate' is a str.*close over"):
        cj.trace(apply, {**PARAMS, "rate": "fast"}, X)


# Scores. ----------------------------------------------------------------------------


def test_scores_that_are_nan(graph):
    scores = cj.random(None, None, graph)
    scores["age"] = {n: v.copy() for n, v in scores["age"].items()}
    scores["age"][TRUNK][2] = np.nan
    with pytest.raises(DataError, match=rf"scores\['age'\]\['{TRUNK}'\] are NaN"):
        cj.plan(graph, scores, budget=cj.Budget(params=0.5))
    with pytest.raises(DataError, match="NaN or infinite"):
        cj.fuse.union(scores)
    poisoned = {**PARAMS, "age": PARAMS["age"] * jnp.nan}
    with pytest.raises(DataError, match="task 'age' is NaN or infinite in batch 1"):
        cj.taylor(apply, poisoned, graph, LOSSES, DATA, progress=False)


# Keeps. -----------------------------------------------------------------------------

BAD_KEEPS = {
    "name": ({"trunk/kernal:1": np.ones(6, bool)}, f"nearest: '{TRUNK}'"),
    "axis": ({"trunk/kernel:0": np.ones(6, bool)}, "trunk/kernel"),
    "length": ({TRUNK: np.ones(5, bool)}, r"is bool\[5\], not bool\[6\]"),
    "empty": ({TRUNK: np.zeros(6, bool)}, "keeps no channel; keep one at least"),
    "pinned": ({"age:1": np.zeros(1, bool)}, "age:1"),
}


@pytest.mark.parametrize("bad", BAD_KEEPS)
def test_keeps_that_do_not_fit(graph, bad):
    keep, want = BAD_KEEPS[bad]
    for call in (
        lambda: cj.cut(apply, PARAMS, graph, keep),
        lambda: cj.mask(PARAMS, graph, keep),
        lambda: cj.cut_params(PARAMS, graph, keep),
        lambda: cj.shrink(apply, graph, keep),
        lambda: graph.cost(keep),
        lambda: cj.compensate(apply, PARAMS, graph, keep, DATA, progress=False),
    ):
        with pytest.raises(KeepError, match=want):
            call()


WRONG_DTYPES = """
import jax.numpy as jnp, numpy as np, cutjax as cj
params = {"a": jnp.ones((3, 6)), "b": jnp.ones((6, 2))}
apply = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
graph = cj.trace(apply, params, jnp.ones((2, 3)))
for mask in (np.ones(6, int), np.array([0, 2]), [True] * 5, np.ones((6, 1), bool)):
    try:
        cj.cut(apply, params, graph, {"a:1": mask})
    except cj.errors.KeepError as error:
        print(error)
"""
WRONG_SCORES = """
import jax, jax.numpy as jnp, cutjax as cj
params = {"a": jnp.ones((3, 6)), "b": jnp.ones((6, 2))}
apply = lambda p, x: {"y": jnp.tanh(x @ p["a"]) @ p["b"]}
graph, budget = cj.trace(apply, params, jnp.ones((2, 3))), cj.Budget(params=0.8)
one = cj.l1(apply, params, graph)
both = {"l1": one, "again": one}
for call in (
    lambda: cj.plan(graph, both, budget=budget),
    lambda: cj.plan(graph, both, budget=budget, tasks="y"),
    lambda: cj.front(graph, both, budget=budget),
    lambda: cj.worst_case(graph, both, budget=budget),
    lambda: cj.fuse.mean(both),
    lambda: cj.fuse.union(both),
    lambda: jax.jit(lambda s: cj.plan(graph, s, budget=budget)[0])(one),
    lambda: jax.jit(lambda k: cj.mask(params, graph, {"a:1": k}))(jnp.ones(6, bool)),
):
    try:
        call()
    except cj.CutjaxError as error:
        print(error)
"""


def unhooked(code: str) -> list[str]:
    """What is printed without the hook of conftest.py, which looks at annotations."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_masks_of_another_type_as_users_see_it():
    assert unhooked(WRONG_DTYPES) == [
        "keep['a:1'] is int64[6], not bool[6]",
        "keep['a:1'] is int64[2], not bool[6]",
        "keep['a:1'] is bool[5], not bool[6]",
        "keep['a:1'] is bool[6, 1], not bool[6]",
    ]


def test_scores_that_are_not_per_task_or_not_known_as_users_see_it():
    *several, scores, keep = unhooked(WRONG_SCORES)
    assert (
        several
        == [
            "these are scores of the criteria ['l1', 'again']; choose one criterion: "
            "scores['l1']"
        ]
        * 6
    )
    assert re.match("plan decides.*outside of jax.jit", scores)
    assert re.match("a keep decides.*outside of jax.jit", keep)


def test_cutting_a_pinned_group_says_why_it_is_pinned(graph):
    out = next(g for g in graph.groups if g.pinned and g.size == 2)
    with pytest.raises(KeepError, match="is pinned: the output of task 'smile'"):
        cj.cut(apply, PARAMS, graph, {out.name: np.array([True, False])})
    mine = cj.trace(apply, PARAMS, X, pin=TRUNK)
    with pytest.raises(KeepError, match=f"'{TRUNK}' is pinned: pinned by the caller"):
        cj.cut(apply, PARAMS, mine, keep_of())
    kept, _ = cj.cut(apply, PARAMS, mine, {TRUNK: np.ones(6, bool)})
    assert callable(kept)


def test_a_pin_that_matches_nothing():
    with pytest.raises(
        KeepError, match=r"pin='trnk/\*' matches nothing; nearest: 'trunk"
    ):
        cj.trace(apply, PARAMS, X, pin=["trnk/*"])


def test_a_gate_that_does_not_fit(graph):
    gated = cj.gate(apply, graph)
    with pytest.raises(KeepError, match=rf"'{TRUNK}' has shape .5,?., not .6"):
        gated({TRUNK: jnp.ones(5)}, PARAMS, X)
    with pytest.raises(KeepError, match=f"no group 'trunk:1'; nearest: '{TRUNK}'"):
        gated({"trunk:1": jnp.ones(6)}, PARAMS, X)


def test_a_function_that_needs_what_is_cut(graph):
    """Another function over the same parameters that sums what was cut with data."""

    def other(p, x):
        return {"age": x @ p["trunk"]["kernel"] + jnp.arange(6.0) * x[:, :1]}

    def flips(p, x):
        return {"age": jnp.sort(x @ p["trunk"]["kernel"]) @ p["age"]}

    small = cj.cut_params(PARAMS, graph, keep_of())
    with pytest.raises(
        KeepError, match=f"'{TRUNK}' cannot shrink in this function.*{HERE}"
    ):
        cj.shrink(flips, graph, keep_of())(small, X)
    assert cj.shrink(other, graph, keep_of())(small, X)["age"].shape == (2, 4)


# Data and inputs. -------------------------------------------------------------------


@pytest.mark.parametrize("criterion", [cj.taylor, cj.fisher, cj.joint])
def test_an_empty_calibration_set(graph, criterion):
    for empty in ([], iter(())):
        with pytest.raises(
            DataError, match=r"calibration data is empty; .*pass a list"
        ):
            criterion(apply, PARAMS, graph, LOSSES, empty, progress=False)
    none = [(X[:0], {t: v[:0] for t, v in DATA[0][1].items()})]
    with pytest.raises(DataError, match=r"a batch of 0 examples|is empty"):
        criterion(apply, PARAMS, graph, LOSSES, none, progress=False)


def test_empty_data_for_compensation(graph):
    for empty in ([], iter(())):
        with pytest.raises(DataError, match="calibration data is empty"):
            cj.compensate(apply, PARAMS, graph, keep_of(), empty, progress=False)


def test_inputs_that_the_function_cannot_take():
    want = r"cannot be called as apply\(params, float32\[2, 7\]\)"
    with pytest.raises(MismatchError, match=want):
        cj.trace(apply, PARAMS, jnp.ones((2, 7)))
    with pytest.raises(MismatchError, match=r"apply\(params\).*TypeError"):
        cj.trace(apply, PARAMS)
    with pytest.raises(MismatchError, match="int32"):
        cj.trace(apply, PARAMS, jnp.ones((2, 3), jnp.int32), X)


@pytest.mark.parametrize(
    ("batches", "match"),
    [
        ([X, X], r"a batch is a pair.*not an array \[2, 3\].*batches=\[\(x, "),
        (X, r"a batch is a pair.*not an array \[3\]"),
        ([(X,)], "a batch is a pair.*not a tuple of 1"),
        ([(X, jnp.zeros((2, 1)))], r"\{task: array\}.*'age', 'smile'.*array \[2, 1\]"),
    ],
)
def test_batches_of_another_form(graph, batches, match):
    for more in ({}, {"batch_size": 2}):
        with pytest.raises(DataError, match=match):
            # An iterator's elements are not checked by the hook of conftest.py.
            data = iter(batches)
            cj.saliency(apply, PARAMS, graph, LOSSES, data, progress=False, **more)


def test_one_task_needs_no_dict_of_targets(graph):
    x, y = DATA[0]
    for more in ({}, {"batch_size": 1}):
        got, want = (
            cj.saliency(
                *(apply, PARAMS, graph, {"age": mse}, [(x, target)]),
                criterion="taylor",
                progress=False,
                **more,
            )
            for target in (y["age"], y)
        )
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_criteria_by_name(graph):
    for criterion in ("l2", ("l1", cj.criteria.l2)):
        found = cj.saliency(
            apply, PARAMS, graph, LOSSES, DATA, criterion=criterion, progress=False
        )
        got = found if criterion == "l2" else found["l2"]
        want = cj.criteria.l2(apply, PARAMS, graph, LOSSES)
        jax.tree.map(np.testing.assert_array_equal, got, want)
    with pytest.raises(CutjaxError, match=r"no criterion 'jiont'.*nearest: 'joint'"):
        cj.saliency(apply, PARAMS, graph, LOSSES, DATA, criterion="jiont")


def test_a_loop_of_unknown_length_has_no_derivative():
    def looped(p, x):
        go = lambda s: (s[0] + 1, jnp.tanh(s[1] @ p["w"]))  # noqa: E731
        h = jax.lax.while_loop(lambda s: s[0] < 2, go, (0, x @ p["a"]))[1]  # loop
        return h @ p["b"]

    p = {"a": jnp.ones((3, 4)), "w": jnp.ones((4, 4)), "b": jnp.ones((4, 1))}
    args = (looped, p, cj.trace(looped, p, X), {"output": mse}, [(X, jnp.ones((2, 1)))])
    with pytest.raises(
        CutjaxError, match=rf"(?s){HERE}:{line_of('# loop')} .*scan.*l1"
    ):
        cj.saliency(*args, criterion=cj.taylor, progress=False)
    assert cj.saliency(*args, criterion=cj.l1)["output"]


def test_what_decides_by_values_is_called_outside_of_jit(graph):
    keep = keep_of()
    quiet: Any = {"progress": False}
    for call, arg in (
        (lambda p: cj.compensate(apply, p, graph, keep, DATA, **quiet)[0], PARAMS),
        (lambda x: cj.compensate(apply, PARAMS, graph, keep, [x], **quiet)[0], X),
        (lambda p: cj.l1(apply, p, graph), PARAMS),
        (lambda p: cj.taylor(apply, p, graph, LOSSES, DATA, **quiet), PARAMS),
    ):
        with pytest.raises(CutjaxError, match=r"outside of jax\.jit"):
            _ = jax.jit(call)(arg)
    small = jax.jit(lambda p: cj.cut(apply, p, cj.trace(apply, p, X), keep)[1])(PARAMS)
    assert small["age"].shape == (4, 1)


# Unknown primitives. ----------------------------------------------------------------


unheard = Primitive("unheard")
unheard.def_abstract_eval(lambda x: x)
unheard.def_impl(lambda x: x[..., ::-1])


def strange(p: Any, x: jax.Array) -> jax.Array:
    h = jnp.tanh(x @ p["a"])
    h = unheard.bind(h)  # the strange line
    return (h @ p["b"]) @ p["c"]


STRANGE = {"a": jnp.ones((3, 6)), "b": jnp.ones((6, 5)), "c": jnp.ones((5, 2))}


def line_of(comment: str) -> int:
    with open(__file__) as file:
        lines = [i for i, line in enumerate(file, 1) if line.rstrip().endswith(comment)]
    return lines[0]


def test_an_unknown_primitive_names_the_line_and_the_way_out():
    with pytest.raises(TraceError) as caught:
        cj.trace(strange, STRANGE, X)
    said = str(caught.value)
    assert "no rule for the primitive `unheard`" in said
    assert re.search(rf"at .*{HERE}:{line_of('# the strange line')}\b", said), said
    assert "cutjax.trace(..., on_unknown='pin')" in said


def test_on_unknown_pin_keeps_whole_what_reaches_it():
    graph = cj.trace(strange, STRANGE, X, on_unknown="pin")
    assert [g.name for g in graph.free] == ["b:1"]
    pinned = graph["a:1"].pinned
    assert pinned is not None and "`unheard`" in pinned and HERE in pinned
    keep = {"b:1": np.array([True, False, True, True, False])}
    small_apply, small = cj.cut(strange, STRANGE, graph, keep)
    masked = cj.mask(STRANGE, graph, keep)
    got, want = small_apply(small, X), strange(masked, X)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert small["b"].shape == (6, 3)


def test_on_unknown_takes_two_words():
    with pytest.raises(CutjaxError, match="on_unknown='ignore'; it takes 'raise' or"):
        cj.trace(strange, STRANGE, X, on_unknown="ignore")


def test_saboteur_a_message_without_the_line_is_found_out():
    """The search above is not satisfied by any line of this file."""
    wrong = f"at {HERE}:{line_of('# the strange line') + 1}"
    assert not re.search(rf"at .*{HERE}:{line_of('# the strange line')}\b", wrong)


def test_a_structure_that_depends_on_values_is_jax_own_error_with_a_hint():
    def branching(p: Any, x: jax.Array) -> jax.Array:
        return x @ p["a"] if p["a"].sum() > 0 else x @ p["b"]

    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((3, 4))}
    with pytest.raises(jax.errors.TracerBoolConversionError) as caught:
        cj.trace(branching, params, X)
    assert any("jnp.where or jax.lax.cond" in n for n in caught.value.__notes__)
