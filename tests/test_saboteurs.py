"""Each law fails on its saboteur and holds without it: a law that cannot fail lies."""

from typing import Any

import laws
import pytest
from laws import CJ
from nets import NETS
from saboteurs import SABOTEURS, masquerade

ids = [f"{bad.__name__}-{law.__name__}-{net}" for bad, law, net, _ in SABOTEURS]


@pytest.mark.parametrize(("saboteur", "law", "name", "args"), SABOTEURS, ids=ids)
def test_law_finds_the_saboteur(
    saboteur: Any, law: Any, name: str, args: tuple[Any, ...]
) -> None:
    net = NETS[name]()
    law(CJ, net, *args)
    with pytest.raises(AssertionError):
        law(saboteur(CJ, net), net, *args)


def test_every_law_has_a_saboteur() -> None:
    named = {law.__name__ for _, law, _, _ in SABOTEURS}
    assert named == {name for name in laws.__all__ if name.startswith("check_")}


def test_masquerade_needs_more_than_equal_numbers() -> None:
    """Padding with zeros computes the right thing: only the program shows the cheat."""
    net = NETS["vgg"]()
    laws.check_shrink_equals_mask(masquerade(CJ, net), net, 0)
