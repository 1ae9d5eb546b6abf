"""Readers as matrices: what is read for each row of what they make."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from nets import NETS
from nets.base import normal

import cutjax as cj
from cutjax.readers import energy, is_linear
from cutjax.recover.program import program
from cutjax.recover.rows import kernel_blocks, read_rows

SLOW = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "vit_linen")
]


@pytest.mark.parametrize("name", ["vgg", "wavenet", *SLOW])
def test_energies_are_squares_of_the_rows_that_are_read_as_kernels_weigh(name):
    check(name, energy)


def test_saboteur_energies_of_other_rows_are_found_out():
    def turned(reader, values, kernel):
        return energy(reader, values, kernel)[::-1]

    with pytest.raises(AssertionError):
        check("vgg", turned)


def check(name: str, energy: Any) -> None:
    net = NETS[name]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    prog = program(net.apply, graph, {}, net.inputs)
    readers = [prog.reader(i) for i in prog.frame.sites]
    linear = [r for r in readers if is_linear(r)]
    assert linear
    for number, reader in enumerate(linear):
        at = reader.site.at
        shapes = [atom.aval.shape for atom in reader.eqn.invars]
        values, kernel = normal(*shapes[at], seed=number), normal(*shapes[1 - at])
        got = energy(reader, jnp.asarray(values), jnp.asarray(kernel))
        rows = np.square(read_rows(reader, jnp.asarray(values), kernel))
        weights = np.square(kernel_blocks(reader, kernel))
        want = np.einsum("gpf,gfm->p", rows, weights)
        np.testing.assert_allclose(got, want, rtol=1e-4)
