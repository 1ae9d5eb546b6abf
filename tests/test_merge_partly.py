"""Groups shared in part: what is said to be possible is; what is not, is refused."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.tools import free
from nets import NETS
from nets.turns import by_turns
from test_merge import normal

import cutjax as cj
from cutjax.dims import leaves
from cutjax.errors import DataError, KeepError
from cutjax.merge import DROPPED, OWN, Network, whole_groups
from cutjax.merge.merged import unpacked
from cutjax.merge.whole import DEAD


def half(size: int) -> Any:
    return np.where(np.arange(size) < size // 2, np.arange(size), OWN)


def shared_in_part(graph: Any, groups: set[str]) -> Any:
    """Half of these groups, and all others whole."""
    return {
        g.name: dict.fromkeys(
            "ab", half(g.size) if g.name in groups else np.arange(g.size)
        )
        for g in free(graph)
    }


def own_groups(networks: Any, sharing: Any, inputs: Any) -> set[str]:
    """The groups of which a network has channels of its own that serve something."""
    merged, axes = cj.merge.average(networks, sharing, inputs), networks["a"].graph.axes
    own = unpacked(merged.params, networks).own["a"]
    return {leaf.name for path in own for axis in axes[path] for leaf in leaves(axis)}


def check(whole_groups: Any, net: Any) -> None:
    graph = cj.trace(net.apply, net.params, *net.inputs)
    networks = dict.fromkeys("ab", Network(net.apply, net.params, graph))
    whole = whole_groups(networks["a"], net.inputs)
    part = {g.name for g in free(graph) if g.size > 1} - {*whole}
    assert part <= own_groups(networks, shared_in_part(graph, part), net.inputs)
    for name, why in whole.items():
        if why != DEAD and graph[name].size > 1:
            with contextlib.suppress(KeepError):
                sharing = shared_in_part(graph, {name})
                assert name not in own_groups(networks, sharing, net.inputs)


@pytest.mark.parametrize("name", by_turns(NETS, 8))
def test_what_can_be_shared_in_part_can_and_the_rest_is_refused(name):
    check(whole_groups, NETS[name]())


@pytest.mark.parametrize("name", ["mixer", "vit_split", "vgg"])
def test_a_list_that_is_short_or_long_is_found_out(name):
    def short(*args: Any) -> dict[str, str]:
        return dict([*whole_groups(*args).items()][1:])

    def long(network: Any, inputs: Any) -> dict[str, str]:
        found = whole_groups(network, inputs)
        more = [g.name for g in network.graph.free if g.name not in found]
        return {**found, more[-1]: "no reason"}

    with pytest.raises((AssertionError, KeepError, pytest.fail.Exception)):
        check(long if name == "vgg" else short, NETS[name]())


def heads(p: Any, x: Any) -> Any:
    """Two groups across each other, and one that kernels mix."""
    h = jax.nn.relu(jnp.einsum("bi,ihw->bhw", x, p["a"]))
    return jax.nn.relu(jnp.einsum("bhw,hwo->bo", h, p["b"])) @ p["c"]


def test_pam_shares_whole_what_must_be_and_types_the_rest():
    shapes = {"a": (5, 2, 3), "b": (2, 3, 8), "c": (8, 2)}
    params = [
        {k: normal(3 * i + j, *s) for j, (k, s) in enumerate(shapes.items())}
        for i in range(2)
    ]
    x = normal(6, 16, 5)
    graph = cj.trace(heads, params[0], x)
    networks = {n: Network(heads, p, graph) for n, p in zip("ab", params, strict=True)}
    rng = np.random.default_rng(0)
    scores = {n: {g.name: rng.uniform(size=g.size) for g in graph.free} for n in "ab"}
    sharing, info = cj.merge.pam(networks, scores, [x], exclusive=0.25, progress=False)
    assert list(info.exclusive) == ["b:2"]
    assert sum(info.exclusive["b:2"].values()) >= 2
    for slots in sharing["a:2"].values():
        assert sorted(slots) == list(range(3))
    merged = cj.merge.average(networks, sharing, x)
    assert set(merged.apply(merged.params, x)) == {"a", "b"}
    with pytest.raises(KeepError, match="'a:2' cannot be shared in part: an array"):
        cj.merge.pam(networks, scores, [x], exclusive={"a:2": 1}, progress=False)
    with pytest.raises(DataError, match="no scores of 'b'; known: 'a'"):
        cj.merge.pam(networks, {"a": scores["a"]}, alpha=0.1, progress=False)


def test_pam_says_so_where_nothing_can_be_shared_in_part():
    net = NETS["mixer"]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    networks = dict.fromkeys("ab", Network(net.apply, net.params, graph))
    scores = {n: {g.name: np.ones(g.size) for g in graph.free} for n in "ab"}
    data = [net.inputs]
    with pytest.raises(KeepError, match=r"no group .* can be shared in part"):
        cj.merge.pam(networks, scores, data, alpha=0.5, progress=False)


def plain(p: Any, x: Any) -> Any:
    return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"] + p["bias"]) @ p["h"]


def skipping(p: Any, x: Any) -> Any:
    """A block `u`, `d` beside the stream `a`."""
    h = x @ p["a"]
    return (h + jax.nn.relu(h @ p["u"]) @ p["d"]) @ p["h"]


SIZES = {
    plain: {"a": (5, 6), "b": (6, 4), "bias": (4,), "h": (4, 2)},
    skipping: {"a": (5, 6), "u": (6, 4), "d": (4, 6), "h": (6, 2)},
}


def two_of(apply: Any) -> tuple[Any, Any, dict[str, Network]]:
    x = normal(9, 16, 5)
    params = [
        {k: normal(10 * i + j, *s) for j, (k, s) in enumerate(SIZES[apply].items())}
        for i in range(2)
    ]
    graph = cj.trace(apply, params[0], x)
    nets = {n: Network(apply, p, graph) for n, p in zip("ab", params, strict=True)}
    return x, graph, nets


def both(slots: Any) -> dict[str, Any]:
    return {name: slots for name in "ab"}


CUT_OFF = {
    "b:1": (plain, r"channels of 'b:1' read nothing: of 'a:1'.*\n.*\n.*share 'a:1'"),
    "u:1": (skipping, r"channels of 'u:1' read nothing: of 'a:1'.*\n.*\n.*leave 'u:1'"),
    "a:1": (skipping, r"own .* 'u:1' serve .*'a' nothing: .* 'a:1'.*\n.*share 'u:1'"),
}
"""Groups that are shared alone, where they are, and what is said of it."""


@pytest.mark.parametrize("shared", CUT_OFF)
@pytest.mark.parametrize("way", ["average", "repair"])
def test_what_is_cut_off_from_the_input_or_the_output_is_told(shared, way):
    apply, said = CUT_OFF[shared]
    x, graph, nets = two_of(apply)
    sharing = cj.merge.until(graph, "ab", {}, shared)
    with pytest.raises(KeepError, match=said):
        if way == "average":
            _ = cj.merge.average(nets, sharing, x)
        else:
            _ = cj.merge.repair(nets, sharing, [x], progress=False)


def test_a_part_of_a_group_that_is_cut_off_is_warned_of():
    x, _, nets = two_of(plain)
    none = {"a:1": both(np.full(6, OWN))}
    some = {"b:1": both(half(4))}
    with pytest.warns(UserWarning, match="shared channels of 'b:1' read nothing"):
        merged = cj.merge.average(nets, none | some, x)
    # What is left answers to its input: two channels of its own, two constant ones.
    for name, y in merged.apply(merged.params, x).items():
        p = nets[name].params
        bias = sum(net.params["bias"][:2] for net in nets.values()) / 2
        h = jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"] + p["bias"])
        h = h.at[:, :2].set(jax.nn.relu(bias))
        np.testing.assert_allclose(y, h @ p["h"], rtol=1e-4, atol=1e-4)
    some = {"a:1": both(half(6))}
    with pytest.warns(UserWarning, match=r"own channels of 'a:1' .* 'b:1'"):
        _ = cj.merge.average(nets, some, x)


def test_a_block_may_be_shared_where_a_skip_is_not_and_dropped_where_it_is():
    x, _, nets = two_of(skipping)
    gone = {"u:1": both(np.full(4, DROPPED))}
    merged = cj.merge.average(nets, gone, x)
    a = (nets["a"].params["a"] + nets["b"].params["a"]) / 2
    for name, y in merged.apply(merged.params, x).items():
        np.testing.assert_allclose(y, x @ a @ nets[name].params["h"], rtol=1e-4)
    part = {"a:1": both(half(6)), "u:1": both(half(4))}
    _ = cj.merge.average(nets, part, x)
