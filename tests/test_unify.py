"""Unification against index arrays: what numpy does to positions, variables do."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from cutjax import dims
from cutjax.dims import Fixed, Leaf
from cutjax.resize import Kept, freeze, to_var
from cutjax.unify import CONCAT, PRODUCT, Solver, Var, find, leaf_vars, parts_of


class World(NamedTuple):
    """Axes so far, what numpy says of the masks of some, and the steps taken."""

    solver: Solver
    pool: list[Var]
    laws: list[tuple[str, Any]]
    steps: list[tuple[str, tuple[int, ...]]]

    def add(self, size: int) -> Var:
        self.pool.append(self.solver.new(size))
        return self.pool[-1]

    def take(self, kind: str, axes: tuple[int, ...], *more: int) -> None:
        """A step, its axes by their place in the pool, so that it can be repeated."""
        self.steps.append((kind, (axes, more)))
        getattr(self, kind)(*(self.pool[i] for i in axes), *more)

    def split(self, var: Var, outer: int) -> tuple[Var, Var]:
        """A reshape of one axis into two."""
        a, b = self.add(outer), self.add(var.size // outer)
        self.solver.unify(var, self.solver.product([a, b]))
        self.laws.append(("split", (var, a, b)))
        return a, b

    def merge(self, a: Var, b: Var) -> Var:
        """A reshape of two axes into one."""
        self.pool.append(self.solver.product([a, b]))
        self.laws.append(("split", (self.pool[-1], a, b)))
        return self.pool[-1]

    def concat(self, a: Var, b: Var) -> Var:
        self.pool.append(self.solver.concat([a, b]))
        self.laws.append(("concat", (self.pool[-1], a, b)))
        return self.pool[-1]

    def slice(self, var: Var, start: int, stop: int) -> Var:
        self.pool.append(self.solver.segment(var, start, stop))
        self.laws.append(("slice", (self.pool[-1], var, start, stop)))
        return self.pool[-1]

    def equal(self, a: Var, b: Var) -> None:
        """An elementwise operation."""
        self.solver.unify(a, b)
        self.laws.append(("equal", (a, b)))

    def pin(self, var: Var) -> None:
        self.solver.pin(var, "a test")
        self.laws.append(("pinned", (var,)))


def world(solver: Solver | None = None) -> World:
    return World(solver or Solver(), [], [], [])


def masks(pool: list[Var], seed: int) -> Kept:
    """Random channels of every variable that is free."""
    rng, kept = np.random.default_rng(seed), Kept()
    free = {leaf: None for var in pool for leaf in leaf_vars(var)}
    for i, leaf in enumerate(free):
        if leaf.size > 1 and not leaf.pins:
            kept.assign(leaf, rng.random(leaf.size) < 0.6, f"g{i}")
    return kept


def check(w: World, seed: int = 0) -> None:
    """Every mask is what numpy makes of the others."""
    kept = masks(w.pool, seed)
    m = kept.mask
    for kind, args in w.laws:
        if kind == "split":
            whole, a, b = args
            got, want = m(whole), np.logical_and.outer(m(a), m(b)).ravel()
        elif kind == "concat":
            whole, a, b = args
            got, want = m(whole), np.concatenate([m(a), m(b)])
        elif kind == "slice":
            part, var, start, stop = args
            got, want = m(part), m(var)[start:stop]
        elif kind == "equal":
            got, want = m(args[0]), m(args[1])
        else:
            got, want = m(args[0]), np.ones(args[0].size, bool)
        assert got.tolist() == want.tolist(), (
            kind,
            [getattr(a, "size", a) for a in args],
        )
    for var in w.pool:
        assert m(var).shape == (var.size,)
        assert kept.count(var) == m(var).sum()


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def random_step(w: World, draw: st.DrawFn) -> None:
    kind = draw(st.sampled_from(["split", "merge", "concat", "slice", "equal", "pin"]))
    at = draw(st.integers(0, len(w.pool) - 1))
    size = w.pool[at].size
    if kind == "split":
        w.take(kind, (at,), draw(st.sampled_from(divisors(size))))
    elif kind == "slice":
        start = draw(st.integers(0, size - 1))
        w.take(kind, (at,), start, draw(st.integers(start + 1, size)))
    elif kind == "pin" and draw(st.integers(0, 3)) == 0:
        w.take(kind, (at,))
    elif kind == "equal":
        alike = [i for i, v in enumerate(w.pool) if v.size == size]
        w.take(kind, (at, draw(st.sampled_from(alike))))
    elif kind in ("merge", "concat"):
        other = draw(st.integers(0, len(w.pool) - 1))
        more = w.pool[other].size
        if (size * more if kind == "merge" else size + more) <= 48:
            w.take(kind, (at, other))


BASES = st.lists(st.sampled_from([1, 2, 3, 4, 6, 12, 12]), min_size=2, max_size=4)


@st.composite
def programs(draw: st.DrawFn) -> tuple[World, int]:
    """Some axes (12 is rich in divisors) and some steps; and how many they were."""
    w, sizes = world(), draw(BASES)
    for size in sizes:
        w.add(size)
    for _ in range(draw(st.integers(1, 9))):
        random_step(w, draw)
    return w, len(sizes)


@settings(max_examples=200, deadline=None)
@given(programs(), st.integers(0, 9))
def test_masks_follow_reshapes_concatenations_and_slices(program, seed):
    check(program[0], seed)


def again(w: World, bases: int, seed: int) -> None:
    """Inference over axes already solved finds nothing new: what `shrink` rests on."""
    names: dict[Var, str] = {}

    def name(var: Var) -> Leaf | Fixed:
        if var.pins or var.size == 1:
            return Fixed(var.size)
        return Leaf(names.setdefault(var, f"g{len(names)}"), var.size)

    axes = [freeze(var, name) for var in w.pool[:bases]]
    second, table = world(), {}
    second.pool.extend(to_var(second.solver, axis, table) for axis in axes)
    for kind, (at, more) in w.steps:
        second.take(kind, at, *more)
    rng, kept = np.random.default_rng(seed), Kept()
    keep = {n: rng.random(table[n].size) < 0.6 for n in table}
    for group, mask in keep.items():
        # Raises where the second inference pins, ties or splits what the first left.
        kept.assign(table[group], mask, group)
    for var, axis in zip(second.pool, axes, strict=False):
        assert kept.mask(var).tolist() == dims.kept(axis, keep).tolist()


@settings(max_examples=200, deadline=None)
@given(programs(), st.integers(0, 9))
def test_inference_over_solved_axes_finds_nothing_new(program, seed):
    again(*program, seed)


def shuffle_units(units: int) -> World:
    """ShuffleNet v2: a half passes by, the halves are joined and dealt out."""
    w = world()
    w.add(8)
    x = 0
    for _ in range(units):
        w.take("slice", (x,), 0, 4)
        half = len(w.pool) - 1
        w.take("add", (), 4)  # what the branch makes
        w.take("concat", (half, half + 1))
        w.take("split", (half + 2,), 2)
        w.take("merge", (half + 4, half + 3))
        x = half + 5
        w.take("slice", (x,), 4, 8)  # what the next branch reads
    return w


@pytest.mark.parametrize("units", [1, 2, 3])
def test_shuffles_are_inferred_alike_twice(units):
    w = shuffle_units(units)
    check(w)
    again(w, 1, 0)


def refinement(*shapes: tuple[int, ...]) -> tuple[World, Var]:
    """One axis reshaped in several ways."""
    w = world()
    var = w.add(math.prod(shapes[0]))
    for shape in shapes:
        rest = var
        for size in shape[:-1]:
            _, rest = w.split(rest, size)
    return w, var


@pytest.mark.parametrize(
    ("shapes", "want"),
    [
        ([(2, 6), (4, 3)], (2, 2, 3)),
        ([(4, 3), (2, 6)], (2, 2, 3)),
        ([(8, 3), (2, 12), (4, 6)], (2, 2, 2, 3)),
        ([(2, 1, 6), (12, 1)], (2, 6)),
        ([(12,)], (12,)),
    ],
)
def test_two_reshapes_meet_in_their_common_refinement(shapes, want):
    w, var = refinement(*shapes)
    root = find(var)
    parts = parts_of(root) if root.form else (root,)
    assert tuple(p.size for p in parts) == want
    assert not any(leaf.pins for leaf in leaf_vars(var))
    check(w)


@pytest.mark.parametrize(
    "shapes", [[(2, 3), (3, 2)], [(4, 3), (3, 4)], [(2, 15), (3, 10)]]
)
def test_reshapes_without_a_common_refinement_are_pinned_with_the_reason(shapes):
    w, var = refinement(*shapes)
    assert w.solver.pinned(var)
    assert all("no common refinement" in leaf.pins[0].reason for leaf in leaf_vars(var))
    check(w)


def test_concatenations_meet_in_their_common_cuts():
    w = world()
    a = w.concat(w.add(4), w.add(8))
    b = w.concat(w.add(6), w.add(6))
    w.equal(a, b)
    assert find(a).form == CONCAT
    assert [v.size for v in leaf_vars(a)] == [4, 2, 6]
    assert list(leaf_vars(a)) == list(leaf_vars(b))
    check(w)


def test_a_product_of_concatenations_is_cut_along_whole_rows():
    """Multiplying a DenseNet's features by their spatial size, then flattening."""
    w = world()
    rows = w.concat(w.add(2), w.add(4))
    flat = w.merge(rows, w.add(3))
    part = w.slice(flat, 6, 18)
    assert [v.size for v in leaf_vars(part)] == [4, 3]
    assert not w.solver.pinned(part)
    check(w)


def test_a_slice_inside_of_a_row_pins():
    w = world()
    flat = w.merge(w.add(4), w.add(3))
    part = w.slice(flat, 0, 5)
    assert w.solver.pinned(part) and w.solver.pinned(flat)
    assert "sliced at 5" in next(leaf_vars(flat)).pins[0].reason
    check(w)


def test_a_concatenation_factors_when_its_parts_do():
    """Heads of two attentions end to end, reshaped to (heads, width)."""
    w = world()
    both = w.concat(w.add(6), w.add(9))
    heads, width = w.split(both, 5)
    assert find(heads).form == CONCAT
    assert [v.size for v in leaf_vars(heads)] == [2, 3]
    assert find(width).form is None and not w.solver.pinned(both)
    check(w)


def test_fused_qkv_shares_heads_but_not_widths_when_split_so():
    w = world()
    qkv = w.add(3 * 2 * 4)
    parts = [w.slice(qkv, 8 * i, 8 * (i + 1)) for i in range(3)]
    grids = [w.split(part, 2) for part in parts]
    for heads, _ in grids[1:]:
        w.equal(heads, grids[0][0])
    w.equal(grids[0][1], grids[1][1])  # query and key, not value
    found = set(leaf_vars(qkv))
    assert sorted(v.size for v in found) == [2, 4, 4]
    check(w)


def test_pins_travel_both_ways_and_name_the_first_reason():
    w = world()
    a, b = w.add(4), w.add(4)
    w.solver.pin(a, "first")
    w.equal(a, b)
    w.solver.pin(b, "second")
    assert [p.reason for p in find(b).pins] == ["first", "second"]
    whole = w.concat(b, w.add(3))
    assert not w.solver.pinned(whole)
    w.pin(whole)
    assert w.solver.pinned(whole)
    check(w)


def test_a_pin_stays_when_the_axis_is_taken_apart():
    w = world()
    var = w.add(12)
    w.solver.pin(var, "early")
    a, b = w.split(var, 3)
    assert find(a).pins[0].reason == find(b).pins[0].reason == "early"


def test_size_one_ties_nothing():
    w = world()
    one, many = w.add(1), w.add(5)
    w.solver.pin(one, "never seen")
    both = w.merge(one, many)
    assert both is many and not many.pins
    w.equal(w.add(1), one)
    check(w)


def test_different_sizes_cannot_be_equal():
    solver = Solver()
    with pytest.raises(ValueError, match="sizes 2 and 3"):
        solver.unify(solver.new(2), solver.new(3))


def test_chains_of_links_are_found_in_a_step():
    solver = Solver()
    chain = solver.news([3] * 50)
    for a, b in itertools.pairwise(chain):
        solver.unify(a, b)
    assert len({id(find(v)) for v in chain}) == 1


def qkv_program(solver: Solver) -> World:
    """A fixed program that every breakage below must show in."""
    w = world(solver)
    flat = w.merge(w.concat(w.add(2), w.add(4)), w.add(3))
    w.split(w.slice(flat, 6, 18), 4)
    other = w.add(18)
    w.split(other, 2)
    w.equal(other, w.concat(w.add(9), w.add(9)))
    w.equal(w.slice(w.add(12), 2, 7), w.slice(w.add(12), 1, 6))
    return w


class Swapped(Solver):
    """Splits a concatenation's halves the wrong way round."""

    def _cut(self, var, first):
        halves = super()._cut(var, first)
        return halves and (halves if halves[0].size != halves[1].size else halves[::-1])


class Forgetful(Solver):
    """Takes an axis apart without telling it."""

    def _factor(self, var, outer):
        if find(var).form is None and var.size % outer == 0:
            return self.new(outer), self.new(var.size // outer)
        return super()._factor(var, outer)


class OffByOne(Solver):
    """Cuts one position too far."""

    def segment(self, var, start, stop):
        shift = 1 if stop < var.size else 0
        return super().segment(var, start + shift, stop + shift)


class Deaf(Solver):
    """Forgets pins."""

    def pin(self, var, reason):
        return None


@pytest.mark.parametrize("broken", [Swapped, OffByOne, Forgetful])
def test_saboteurs_of_unification_are_found_out(broken):
    check(qkv_program(Solver()))
    with pytest.raises(AssertionError):
        for seed in range(20):
            w = qkv_program(broken())
            flat = w.merge(w.add(6), w.add(4))
            w.equal(flat, w.merge(w.add(3), w.add(8)))
            check(w, seed)


def test_a_solver_without_pins_is_found_out():
    w = world(Deaf())
    w.pin(w.add(6))
    with pytest.raises(AssertionError):
        check(w, 1)


def test_forms_are_flattened():
    solver = Solver()
    a, b, c = solver.news([2, 3, 4])
    nested = solver.product([solver.product([a, b]), c])
    assert find(nested).form == PRODUCT
    assert parts_of(nested) == (a, b, c)
