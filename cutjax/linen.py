"""Flax Linen: a smaller module that needs no `init`, for code that wants a module.

Linen checks shapes against the fields of the class, so cut parameters do not fit the
class that made them. `Compact` is called like the module and computes at the new sizes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from cutjax.dims import Keep
from cutjax.errors import CutjaxError
from cutjax.graph import Graph
from cutjax.shrink import cut as cut_function, shrink
from cutjax.trace import trace as infer


@dataclass(frozen=True, eq=False)
class Compact:
    """A Linen module at the sizes that a keep leaves.

    It has `apply` and no `init`: `cut` gives the variables with it. Compared by
    identity, so that it can stand where jit wants a hashable function, as in
    `TrainState.create(apply_fn=compact.apply, params=small["params"], tx=...)`.

    Attributes:
        module: the full module.
        graph: its graph.
        keep: the kept channels.
        tasks: the tasks that are answered; all, for None.
    """

    module: nn.Module
    graph: Graph = field(repr=False)
    keep: Keep = field(repr=False)
    tasks: tuple[str, ...] | None = None

    def apply(
        self,
        variables: Any,
        *args: Any,
        rngs: Any = None,
        method: Callable[..., Any] | str | None = None,
        mutable: Any = False,
        **kwargs: Any,
    ) -> Any:
        """What `module.apply` does, with the small variables.

        It is traced at full size whenever it is called: call it under `jax.jit`.

        Args:
            variables: the small variables, all collections that were traced.
            *args: as those of the module; what is no array is static.
            rngs: see `flax.linen.Module.apply`.
            method: see `flax.linen.Module.apply`.
            mutable: see `flax.linen.Module.apply`; new state comes out small.
            **kwargs: as those of the module, such as `train=True`.

        Returns:
            What `module.apply` returns: the output, or with `mutable` the output and
            the new state.

        Raises:
            MismatchError: these are not the small variables.
            KeepError: this method ties or needs channels in a way that the keep does
                not allow.
        """
        leaves, tree = jax.tree.flatten((args, kwargs))
        dynamic = [leaf if _is_array(leaf) else None for leaf in leaves]

        def full(variables: Any, rngs: Any, dynamic: Any) -> Any:
            both = zip(dynamic, leaves, strict=True)
            given = [leaf if array is None else array for array, leaf in both]
            args, kwargs = jax.tree.unflatten(tree, given)
            return self.module.apply(
                variables, *args, rngs=rngs, method=method, mutable=mutable, **kwargs
            )

        small = shrink(full, self.graph, self.keep, self.tasks)
        return small(variables, rngs, dynamic)


def cut(
    module: Any,
    variables: Any,
    graph: Graph,
    keep: Keep,
    tasks: Sequence[str] | str | None = None,
) -> tuple[Compact, Any]:
    """A smaller Linen module and its variables.

    Args:
        module: the full module.
        variables: all its variables: parameters and, if there are any, statistics.
        graph: from `cutjax.linen.trace(module, variables, *inputs)`, or `cutjax.trace`
            of any function over the same variables.
        keep: the channels to keep.
        tasks: answer only these; variables that none of them needs are gone.

    Returns:
        `(compact, small_variables)`; `compact.apply(small_variables, x)` computes what
        the same module with narrower layers computes.

    Raises:
        CutjaxError: not a Linen module.
        KeepError: unknown task, or a keep that does not fit.
        MismatchError: the variables do not match the graph.
    """
    _check_module(module)
    _, small = cut_function(module.apply, variables, graph, keep, tasks)
    chosen = None if tasks is None else graph.check_tasks(tasks)
    return Compact(module, graph, keep, chosen), small


def trace(
    module: Any,
    variables: Any,
    *inputs: Any,
    pin: Iterable[str] = (),
    on_unknown: str = "raise",
    **options: Any,
) -> Graph:
    """The channel groups of a Linen module in evaluation mode.

    Args:
        module: the module.
        variables: its variables, or their shapes (`jax.eval_shape` of `init`).
        *inputs: arrays or shapes of one batch.
        pin: see `cutjax.trace`.
        on_unknown: see `cutjax.trace`.
        **options: whatever else `module.apply` takes: `train=False`, `method="encode"`.

    Returns:
        The graph.

    Raises:
        CutjaxError: not a Linen module, or whatever `cutjax.trace` raises.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, cutjax.linen
        >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
        >>> x = jnp.ones((1, 3))
        >>> variables = model.init(jax.random.key(0), x)
        >>> graph = cutjax.linen.trace(model, variables, x)
        >>> [g.name for g in graph.free]
        ['params/layers_0/kernel:1']
    """
    _check_module(module)

    def apply(variables: Any, *inputs: Any) -> Any:
        return module.apply(variables, *inputs, **options)

    return infer(apply, variables, *inputs, pin=pin, on_unknown=on_unknown)


def _check_module(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise CutjaxError(
            f"a {type(module).__name__} is not a Linen module; for NNX see cutjax.nnx, "
            "for any function cutjax.trace(apply, params, *inputs)"
        )


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)
