"""Axes against a model that lists, by position, the channels that meet there."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from cutjax import dims
from cutjax.dims import Axis, Concat, Fixed, Leaf, Product

SIZES = {"a": 2, "b": 3, "c": 4, "d": 1}


def spots(axis: Axis) -> list[tuple[tuple[str, int], ...]]:
    """Per position the (group, channel) pairs that meet there: the oracle."""
    match axis:
        case Leaf(name, size):
            return [((name, i),) for i in range(size)]
        case Fixed(size):
            return [()] * size
        case Concat(parts):
            return [spot for part in parts for spot in spots(part)]
        case Product(parts):
            met = itertools.product(*map(spots, parts))
            return [sum(pairs, ()) for pairs in met]
    raise TypeError(axis)


def axes(names: tuple[str, ...] = tuple(SIZES), depth: int = 3) -> st.SearchStrategy:
    """Any layout; the parts of a product share no group, those of a concat may."""
    fixed = st.builds(Fixed, st.integers(1, 3))
    leaf = st.sampled_from(names).map(lambda n: Leaf(n, SIZES[n])) if names else fixed
    if depth == 0:
        return st.one_of(leaf, leaf, fixed)
    inner = axes(names, depth - 1)
    concat = st.lists(inner, min_size=1, max_size=3).map(lambda p: Concat(tuple(p)))
    half = len(names) // 2
    product = st.tuples(axes(names[:half], depth - 1), axes(names[half:], depth - 1))
    swapped = st.builds(
        lambda p, s: Product(p[::-1] if s else p), product, st.booleans()
    )
    return st.one_of(leaf, concat, swapped)


@st.composite
def keeps(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Masks of some of the groups."""
    named = draw(st.sets(st.sampled_from(sorted(SIZES))))
    bits = {
        n: st.lists(st.booleans(), min_size=SIZES[n], max_size=SIZES[n]) for n in named
    }
    return {n: np.array(draw(b), bool) for n, b in sorted(bits.items())}


def check_kept(kept: Callable, axis: Axis, keep: dict[str, np.ndarray]) -> None:
    want = [all(keep[n][i] for n, i in spot if n in keep) for spot in spots(axis)]
    assert kept(axis, keep).tolist() == want


def check_channels(channels: Callable, axis: Axis, name: str) -> None:
    want = [dict(spot).get(name, -1) for spot in spots(axis)]
    assert channels(axis, name).tolist() == want


@given(axes(), keeps())
def test_kept_positions_are_those_whose_channels_all_stay(axis, keep):
    check_kept(dims.kept, axis, keep)


@given(axes(), st.sampled_from(sorted(SIZES)))
def test_channels_name_the_channel_of_every_position(axis, name):
    check_channels(dims.channels, axis, name)


@given(axes(), keeps())
def test_count_is_the_number_of_kept_positions(axis, keep):
    widths = {name: int(mask.sum()) for name, mask in keep.items()}
    check_kept(dims.kept, axis, keep)
    assert dims.count(axis, widths) == dims.kept(axis, keep).sum()
    assert dims.count(axis, {}) == axis.size == len(spots(axis))


@given(axes())
def test_leaves_come_in_order_of_position(axis):
    first = {leaf.name: leaf.size for leaf in dims.leaves(axis)}
    assert set(first) == {name for spot in spots(axis) for name, _ in spot}
    assert first == {name: SIZES[name] for name in first}


@given(axes(), st.integers(0, 99))
def test_fold_multiplies_the_vectors_that_meet(axis, seed):
    rng = np.random.default_rng(seed)
    value = {name: rng.normal(size=size) for name, size in SIZES.items()}
    got = dims.fold(axis, lambda name, _: value[name], lambda n: np.full(n, 2.0))
    assert got.shape == (axis.size,)
    # Where parts are fixed the factor 2 enters once per fixed part.
    ones = dims.fold(axis, lambda name, _: value[name], np.ones)
    want = [np.prod([value[n][i] for n, i in spot]) for spot in spots(axis)]
    np.testing.assert_allclose(ones, want)
    twos = np.log2(got / ones)
    np.testing.assert_allclose(twos, np.round(twos), atol=1e-6)


def test_fold_of_jax_arrays_differentiates():
    import jax
    import jax.numpy as jnp

    axis = Concat((Product((Leaf("a", 2), Leaf("b", 3))), Fixed(2), Leaf("a", 2)))

    def total(a):
        b = jnp.array([1.0, 10.0, 100.0])
        return dims.fold(axis, lambda n, _: a if n == "a" else b, jnp.ones).sum()

    np.testing.assert_allclose(jax.grad(total)(jnp.ones(2)), [112.0, 112.0])


@settings(max_examples=20)
@given(axes(), keeps())
def test_an_empty_keep_keeps_all(axis, keep):
    assert dims.kept(axis, {}).all()
    full = {name: np.ones_like(mask) for name, mask in keep.items()}
    assert dims.kept(axis, full).all()


NESTED = Product((Leaf("a", 2), Concat((Leaf("b", 3), Fixed(1)))))


def test_saboteur_column_major_products_are_found_out():
    def column_major(axis, keep):
        return dims.kept(axis, keep).reshape(2, 4).T.ravel()

    check_kept(dims.kept, NESTED, {"a": np.array([True, False])})
    with pytest.raises(AssertionError):
        check_kept(column_major, NESTED, {"a": np.array([True, False])})


def test_saboteur_channels_off_by_one_are_found_out():
    check_channels(dims.channels, NESTED, "b")
    with pytest.raises(AssertionError):
        check_channels(lambda a, n: dims.channels(a, n) + 1, NESTED, "b")
