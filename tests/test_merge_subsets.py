"""One program per subset of tasks: answers, compilations, bytes of the device."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fit_compiles import compiled
from nets import NETS

import cutjax as cj
from cutjax.errors import KeepError, MismatchError
from cutjax.merge import OWN, Merged, Network, Programs, programs, unique_bytes
from cutjax.merge.merged import merged_apply


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.PRNGKey(seed), shape)


def apply(p: Any, x: Any) -> Any:
    h = jax.nn.relu(x @ p["a"])
    return jax.nn.relu(h @ p["b"] + p["c"]) @ p["d"]


def params(seed: int) -> dict[str, jax.Array]:
    shapes = {"a": (6, 32), "b": (32, 16), "c": (16,), "d": (16, 3)}
    return {k: normal(seed + i, *s) for i, (k, s) in enumerate(shapes.items())}


X = normal(90, 64, 6)
GRAPH = cj.trace(apply, params(0), X)


def sharing_of(names: str, share: float) -> dict[str, dict[str, np.ndarray]]:
    """The first channels of each group."""

    def first(n: int) -> np.ndarray:
        return np.where(np.arange(n) < share * n, np.arange(n), OWN)

    return {g.name: {n: first(g.size) for n in names} for g in GRAPH.free}


def merged_of(share: float, names: str = "abc") -> tuple[dict[str, Network], Merged]:
    """Networks, the first channels of each group shared."""
    networks = {n: Network(apply, params(10 * i), GRAPH) for i, n in enumerate(names)}
    return networks, cj.merge.average(networks, sharing_of(names, share), X)


def close(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


# ---- answers


def test_a_subset_answers_as_the_whole_does_and_as_the_networks_one_by_one():
    _, merged = merged_of(0.5)
    found, whole = programs(merged, X), jax.jit(merged.apply)(merged.params, X)
    assert len(list(found)) == 7
    for tasks in found:
        got = found[tasks](merged.params, X)
        assert tuple(got) == tasks
        for task in tasks:
            close(got[task], whole[task])
    networks, alone = merged_of(0.0)
    found = programs(alone, X)
    for tasks in found:
        got = found[tasks](alone.params, X)
        for task in tasks:
            close(got[task], apply(networks[task].params, X))


def two_headed(p: Any, x: Any) -> dict[str, Any]:
    h = jax.nn.relu(x @ p["a"])
    return {"hair": h @ p["hair"], "smile": h @ p["smile"]}


def test_tasks_of_one_network_are_programs_of_their_own():
    shapes = {"a": (6, 8), "hair": (8, 2), "smile": (8, 3)}
    trained = {
        name: {k: normal(i + n, *s) for n, (k, s) in enumerate(shapes.items())}
        for i, name in enumerate(("one", "two"))
    }
    graph = cj.trace(two_headed, trained["one"], X)
    nets = {n: Network(two_headed, p, graph) for n, p in trained.items()}
    merged = cj.merge.average(nets, {}, X)
    found, whole = programs(merged, X), merged.apply(merged.params, X)
    assert found.tasks == ("one/hair", "one/smile", "two/hair", "two/smile")
    got = found["two/hair", "one/smile"](merged.params, X)
    assert set(got) == {"two/hair", "one/smile"}
    for task, y in got.items():
        close(y, whole[task])
    assert found["one/hair"].reads == ("params/reads/one/hair", "params/shared/a")


@pytest.mark.parametrize(
    ("name", "count"),
    [("vgg", 2), pytest.param("resnet18", 3, marks=pytest.mark.slow)],
)
def test_networks_of_images(name, count):
    net = NETS[name]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    other = jax.tree.map(lambda a: 1.1 * a, net.params)
    trained = {"one": net.params, "two": other}
    networks = {n: Network(net.apply, p, graph) for n, p in trained.items()}
    early = [g.name for g in graph.free][:count]
    sharing = cj.merge.until(
        graph,
        list(networks),
        {g: {n: np.arange(graph[g].size) for n in networks} for g in early},
        early,
    )
    merged = cj.merge.average(networks, sharing, net.inputs)
    found = programs(merged, net.inputs)
    whole = jax.jit(merged.apply)(merged.params, *net.inputs)
    for tasks in [(task,) for task in found.tasks]:
        (got,) = found[tasks](merged.params, *net.inputs).values()
        scale = float(jnp.abs(whole[tasks[0]]).max())
        np.testing.assert_allclose(got, whole[tasks[0]], rtol=1e-4, atol=1e-5 * scale)


def test_order_does_not_count_and_what_take_leaves_is_enough():
    _, merged = merged_of(0.5)
    found = programs(merged, X)
    assert found["c", "a"] is found["a", "c", "a"] and found["a"] is found[("a",)]
    pair = found["a", "c"]
    held = pair.take(merged.params)
    assert not any("/b/" in path for path in held)
    close(pair(held, X)["c"], merged.apply(merged.params, X)["c"])
    assert found["a"].take(held).keys() == found["a"].take(merged.params).keys()
    graph = cj.trace(merged.apply, merged.params, X)
    small = cj.cut(merged.apply, merged.params, graph, {}, tasks="a")[1]
    close(found["a"](small, X)["a"], merged.apply(merged.params, X)["a"])


def test_it_costs_what_the_graph_says():
    _, merged = merged_of(0.5)
    found, graph = programs(merged, X), cj.trace(merged.apply, merged.params, X)
    for tasks in found:
        held = found[tasks].take(merged.params)
        assert found[tasks].cost == graph.cost(tasks=tasks)
        assert found[tasks].cost.params == sum(leaf.size for leaf in held.values())


# ---- compilations


def check_one_program_each(found: Programs, params: Any, call: Any) -> None:
    """Whatever is asked however often: as many programs as subsets."""
    each = list(found)

    def ask() -> None:
        for _ in range(3):
            for tasks in each:
                _ = call(found, tasks, params)

    assert compiled(ask) == len(each)
    assert compiled(ask) == 0


def ask(found: Programs, tasks: Any, params: Any) -> Any:
    return found[tasks](params, X)


def test_as_many_programs_as_subsets():
    _, merged = merged_of(0.5)
    check_one_program_each(programs(merged, X), merged.params, ask)


def test_saboteur_a_program_per_call():
    def again(found: Programs, tasks: Any, params: Any) -> Any:
        return jax.jit(lambda p, x: found[tasks]._run.__wrapped__(p, x))(
            list(found[tasks].take(params).values()), X
        )

    _, merged = merged_of(0.5, "ab")
    with pytest.raises(AssertionError):
        check_one_program_each(programs(merged, X), merged.params, again)


def test_programs_compile_ahead():
    _, merged = merged_of(0.5)
    found = programs(merged, jax.ShapeDtypeStruct(X.shape, X.dtype))
    assert compiled(lambda: found.compile([("a", "b"), "c"])) == 2
    assert compiled(lambda: ask(found, ("a", "b"), merged.params)) == 0
    assert compiled(lambda: ask(found, "c", merged.params)) == 0
    assert compiled(found.compile) == 5


# ---- bytes


def check_stored_once(found: Programs, params: Any, take: Any) -> None:
    """All programs together hold each parameter once, and each only what it reads."""
    held = {tasks: take(found[tasks], params) for tasks in found}
    leaves = jax.tree.leaves(params)
    assert unique_bytes(held) == sum(leaf.nbytes for leaf in leaves)
    for tasks, arrays in held.items():
        arrays, subset = list(arrays.values()), found[tasks]
        program = subset._run.lower(arrays, X).compile()
        given = program.memory_analysis().argument_size_in_bytes
        assert given == unique_bytes([arrays, X])
        assert unique_bytes(arrays) == subset.cost.bytes
        baked = [n for n in constants(program) if n >= min(a.nbytes for a in arrays)]
        assert not baked


def constants(program: Any) -> list[int]:
    """Elements of the constants in a compiled program, times four."""
    found = []
    for line in program.as_text().splitlines():
        if " constant({" in line:
            shape = line.split("[")[1].split("]")[0]
            found.append(4 * int(np.prod([int(n) for n in shape.split(",") if n])))
    return found


def test_bytes_of_the_device_are_those_of_distinct_arrays():
    _, merged = merged_of(0.5)
    found = programs(merged, X)
    check_stored_once(found, merged.params, lambda subset, p: subset.take(p))
    before = {id(a) for a in jax.live_arrays()}
    outputs = [found[tasks](merged.params, X) for tasks in found]
    mine = {id(a) for a in jax.tree.leaves(outputs)}
    more = [a for a in jax.live_arrays() if id(a) not in before | mine]
    assert sum(a.nbytes for a in more) == 0, "running left arrays on the device"


def test_programs_keep_no_parameters_alive():
    _, merged = merged_of(0.5, "ab")
    # The merged function as it is after loading: nothing of the networks but code.
    nets = {n: Network(apply, None, GRAPH) for n in "ab"}
    merged = Merged(merged_apply(nets, sharing_of("ab", 0.5)), merged.params)
    found = programs(merged, X)
    held = found["a"].take(merged.params)
    gone, stays = (
        weakref.ref(merged.params["params"][side][name]["b"])
        for side, name in (("own", "b"), ("own", "a"))
    )
    del merged
    _ = gc.collect()
    assert gone() is None and stays() is not None
    assert set(found["a"](held, X)) == {"a"}


def test_saboteur_a_copy_of_what_is_shared_per_task():
    def copied(subset: Any, p: Any) -> Any:
        return {
            path: jnp.array(leaf, copy=True) if "/shared/" in path else leaf
            for path, leaf in subset.take(p).items()
        }

    _, merged = merged_of(0.5)
    with pytest.raises(AssertionError):
        check_stored_once(programs(merged, X), merged.params, copied)


def test_saboteur_parameters_of_others():
    def every(subset: Any, p: Any) -> Any:
        return subset.take(p) | dict(enumerate(jax.tree.leaves(p)))

    _, merged = merged_of(0.5)
    with pytest.raises((AssertionError, ValueError)):
        check_stored_once(programs(merged, X), merged.params, every)


def test_saboteur_parameters_baked_into_the_program():
    _, merged = merged_of(0.5, "ab")
    weights = np.asarray(merged.params["params"]["shared"]["b"])
    program = jax.jit(lambda x: jnp.tanh(x @ weights)).lower(jnp.ones((2, 16)))
    assert weights.nbytes in constants(program.compile())


def test_more_sharing_takes_fewer_bytes():
    shares = (0.0, 0.25, 0.5, 1.0)
    sizes = [unique_bytes(merged_of(share)[1].params) for share in shares]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.5 * sizes[0]


def test_bytes_of_arrays_in_one_place():
    x, host = jnp.ones((4, 4)), np.ones(6, np.float32)
    assert unique_bytes([x, x, x + 1]) == 128
    assert unique_bytes([host, host[2:], host[:3]]) == 24
    assert unique_bytes([host, jnp.zeros((0, 3)), x]) == 88
    assert unique_bytes(jax.random.key(0)) == 8
    assert unique_bytes([]) == 0


SHARDED = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from cutjax.merge import unique_bytes
mesh = jax.make_mesh((4,), ("d",))
x = jnp.ones((8, 4))
put = lambda *names: jax.device_put(x, NamedSharding(mesh, P(*names)))
every, split = put(), put("d")
for arrays in (x, every, split, [split, split]):
    print(unique_bytes(arrays))
"""


def test_replicated_arrays_count_once_per_device():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env={**os.environ, **flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["128", "512", "128", "128"]


# ---- bad input


def test_errors_say_what_would_work():
    _, merged = merged_of(0.5, "ab")
    found = programs(merged, X)
    with pytest.raises(KeepError, match="nearest: 'a'"):
        _ = found["aa"]
    with pytest.raises(KeepError, match="no task chosen"):
        _ = found[()]
    held = found["a"].take(merged.params)
    with pytest.raises(MismatchError, match=r"programs\[\('b',\)\]\.take"):
        _ = found["b"](held, X)
