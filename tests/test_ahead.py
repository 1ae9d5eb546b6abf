"""Steps that are compiled while those before them run."""

from __future__ import annotations

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest

from cutjax._jit import jit
from cutjax.recover.ahead import AHEAD, ahead


def steps_of(number: int):
    return [lambda x, i=i: jnp.concatenate([x, x[:1] * i]) for i in range(number)]


@pytest.mark.parametrize("number", [0, 1, AHEAD + 1, 3 * AHEAD])
def test_steps_come_in_order_each_for_the_shapes_of_the_last(number):
    x = want = jnp.arange(1.0, 3.0)
    found = ahead(steps_of(number), (x,), lambda *of: of[2:])
    for step, plain in zip(found, steps_of(number), strict=True):
        x, want = step(x), plain(want)
    np.testing.assert_array_equal(x, want)


def test_steps_that_differ_by_constants_only_are_compiled_once(monkeypatch):
    """Whatever they leave alone, and wherever their arguments stand."""
    compiled, compile_ = [], jax.stages.Lowered.compile

    def counting(lowered, *args):
        compiled.append(lowered)
        return compile_(lowered, *args)

    monkeypatch.setattr(jax.stages.Lowered, "compile", counting)
    shifts = [np.arange(3) + i for i in range(4)]
    steps = [
        lambda x, i=i: {**x, "abc"[i % 3]: x["abc"[i % 3]] * 2 + jnp.asarray(shifts[i])}
        for i in range(4)
    ]
    x = want = {name: jnp.ones(3) for name in "abc"}
    for step, plain in zip(ahead(steps, (x,), lambda *of: of[2:]), steps, strict=True):
        x, want = step(x), plain(want)
    jax.tree.map(np.testing.assert_array_equal, x, want)
    assert len(compiled) < 4


CALLS = {
    "pure": lambda f: lambda x: jax.pure_callback(f, x, x),
    "io": lambda f: lambda x: jax.experimental.io_callback(f, x, x),
    "inside": lambda f: jax.jit(lambda x: jax.pure_callback(f, x, x)),
}


@pytest.mark.parametrize("call", CALLS)
def test_programs_of_one_text_that_call_other_functions_are_two(call):
    """The text holds a number for a function of Python, and not which it is."""
    steps = [CALLS[call](f) for f in (np.sin, np.exp, np.sin)]
    x = jnp.arange(3.0)
    found = [step(x) for step in ahead(steps, (x,), lambda *_: (x,))]
    for got, want in zip(found, (np.sin(x), np.exp(x), np.sin(x)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_nothing_is_traced_much_before_its_turn():
    traced = []

    def step(x, i=0):
        traced.append(i)
        return x

    steps = [lambda x, i=i: step(x, i) for i in range(4 * AHEAD)]
    found = ahead(steps, (jnp.ones(2),), lambda *of: of[2:])
    next(found)
    assert traced == list(range(AHEAD + 1))
    found.close()


def test_what_is_spent_may_be_written_over_and_nothing_else():
    """Only where a result has its size: else there is nothing to gain."""
    steps = [lambda a, b, c: (a + c.sum(), b * a)] * 3
    sizes, seen = (3, 3, 5), list[tuple]()
    args, want = (tuple(map(jnp.ones, sizes)) for _ in range(2))
    found = ahead(
        *(steps, args, lambda number, args, made: (*made, args[2])),
        spent=lambda number, args: (number > 0, False, True),
    )
    for step, plain in zip(found, steps, strict=True):
        seen.append(args)
        args, want = (*step(*args), args[2]), (*plain(*want), want[2])
    jax.tree.map(np.testing.assert_array_equal, args, want)
    gone = [tuple(value.is_deleted() for value in values) for values in seen]
    assert gone == [(False,) * 3, (True, False, False), (True, False, False)]


def test_what_fails_while_tracing_says_so():
    def broken(x):
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        next(ahead([broken], (jnp.ones(2),), lambda *of: of[2:]))


def test_settings_of_the_caller_hold():
    """Tracing in another thread would lose what is set for this one."""
    seen = []

    def step(x):
        seen.append(jax.config.jax_default_matmul_precision)
        return x

    with jax.default_matmul_precision("highest"):
        next(ahead([step], (jnp.ones(2),), lambda *of: of[2:]))
    assert seen == ["highest"]


def options_of(monkeypatch, flags: str | None) -> dict:
    seen = {}
    if flags is None:
        monkeypatch.delenv("XLA_FLAGS", raising=False)
    else:
        monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(jax, "jit", lambda fn, **options: seen.update(options))
    jit(lambda x: x)
    return seen.get("compiler_options", {})


def test_a_program_of_ours_is_compiled_well_unless_the_user_says_how(monkeypatch):
    with monkeypatch.context() as m:
        assert options_of(m, None) == {"xla_cpu_experimental_ynn_fusion_type": ""}
    with monkeypatch.context() as m:
        assert options_of(m, "--xla_cpu_experimental_ynn_fusion_type=-reduce") == {}
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert float(jit(lambda x: x + 1)(1.0)) == 2.0
