"""One level of a pytree of names, as it is held."""

from collections.abc import Mapping
from typing import Any

import jax


def top_level(tree: Any) -> Mapping[Any, Any]:
    """The top level by names: indexing a State of NNX would wrap what it returns."""
    if isinstance(tree, dict):
        return tree
    level = jax.tree_util.default_registry.flatten_one_level_with_keys(tree)
    return tree if level is None else {key.key: value for key, value in level[0]}
