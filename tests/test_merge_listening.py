"""Channels shared in part, on all nets: against every equation run side by side."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from laws.merging import listening, shared_of
from laws.tools import free, run
from nets import NETS
from nets.turns import by_turns
from test_merge import alike, rescaled

import cutjax as cj
from cutjax.errors import KeepError
from cutjax.merge import DROPPED, OWN, Network, join, own, whole_groups
from cutjax.merge.merged import answers
from cutjax.merge.ways import ALONE, TAKEN

NAMES = ("one", "two")


TURNS = 12


def in_place(rng: Any, size: int) -> dict[str, np.ndarray]:
    """Whole, own, or some of each; alike for both networks, no channel moved."""
    some = rng.permutation(size) < max(1, size // 3)
    kinds = [np.ones(size, bool), np.zeros(size, bool), some, some]
    slots = np.where(kinds[rng.integers(4)], np.arange(size), OWN)
    return dict.fromkeys(NAMES, slots)


def anyhow(rng: Any, size: int) -> dict[str, np.ndarray]:
    """Each network its own way; several channels may meet, some are gone."""
    places = np.array([OWN, OWN, DROPPED, *rng.permutation(size)[: (size + 1) // 2]])
    return {name: rng.choice(places, size) for name in NAMES}


def merges(average: Any, net: Any, seed: int) -> Any:
    """Merged networks, of several ways those that can be."""
    graph = cj.trace(net.apply, net.params, *net.inputs)
    params = (net.params, rescaled(net.params, 1))
    made = [Network(net.apply, p, graph) for p in params]
    networks = dict(zip(NAMES, made, strict=True))
    whole = whole_groups(networks["one"], net.inputs)
    yield from _tried(average, net, networks, (graph, whole), in_place, seed, TURNS)
    yield from _tried(average, net, networks, (graph, whole), anyhow, seed, 1)


def _tried(
    average: Any, net: Any, networks: Any, of: Any, draw: Any, seed: int, turns: int
) -> Any:
    """The first of some random sharings that is not refused as it cuts a group off."""
    graph, whole = of
    for turn in range(turns):
        rng = np.random.default_rng(seed + 100 * turn)
        sharing = {
            group.name: draw(rng, group.size)
            if group.name not in whole and group.size > 1
            else dict.fromkeys(NAMES, np.arange(group.size))
            for group in free(graph)
        }
        try:
            merged = average(networks, sharing, net.inputs)
        except KeepError:
            continue
        yield networks, sharing, merged
        return
    assert draw is anyhow, "all were refused"


def check(average: Any, net: Any, seed: int) -> None:
    for networks, sharing, merged in merges(average, net, seed):
        found = run(merged.apply, merged.params, *net.inputs)
        shared = shared_of(networks, sharing, net.inputs)
        ways = join.joint(networks, sharing, net.inputs).ways
        for name, network in networks.items():
            slots = {group: to[name] for group, to in sharing.items()}
            taken = {i for i, way in ways[name].items() if way == TAKEN}
            want = run(partial(listening, network, slots, shared, taken), *net.inputs)
            for task, answer in answers(name, want).items():
                alike(found[task], answer)


# First one whose stream lies beside another's.
ORDER = sorted(NETS, key="option_a".__ne__)


@pytest.mark.parametrize("name", by_turns(ORDER, 64))
def test_a_network_reads_what_is_shared_and_its_own(name):
    check(cj.merge.average, NETS[name](), 0)


@pytest.mark.parametrize(
    ("name", "at", "what", "broken"),
    [
        ("option_a", join, "way_of", lambda *_: ALONE),  # nothing shared is read
        ("convnext", own, "summands", lambda shared, own, picked: own),  # nor summed
    ],
)
def test_saboteur_a_network_reads_its_own_alone(name, at, what, broken, monkeypatch):
    monkeypatch.setattr(at, what, broken)
    with pytest.raises(AssertionError):
        check(cj.merge.average, NETS[name](), 0)
