"""The parents: those of the study, and for the cards the network of the trial."""

import functools
from pathlib import Path

from studies import parents, real
from studies.parents import RECIPES, Parent, Recipe

BUDGETS = {
    "set_cards": (0.05, 0.02, 0.01),
    "morpho": (0.5, 0.32, 0.2, 0.1),
    "digits": (0.5, 0.32, 0.2, 0.1),
}
"""Shares of the trunk's parameters. On the cards nothing is lost at larger ones."""

UNTRAINED = (0.5,)
"""Of these only what is done without training is looked at: no goal asks for more."""

CARDS = Recipe((32, 64, 128), 2, 6, 64, 4e-3, 86, blocks=2)
RECIPE = {**RECIPES, "set_cards": CARDS}


@functools.cache
def parent(name: str, root: Path) -> Parent:
    """The parent of a data set, read back or trained."""
    data = real.load(name, root / "data")
    folder = root / "parents" / name
    return parents.parent(data, folder, recipe=RECIPE[name], progress=True)
