"""One compiled program per subset of tasks, all over the same parameters.

A program gets the parameters that its tasks read as arguments, the very arrays that the
other programs get: shared tensors lie on the device once, however many programs there
are, and what only other tasks read need not be there at all.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from cutjax._jit import jit
from cutjax.cost import Cost
from cutjax.errors import KeepError, MismatchError, suggest
from cutjax.given import several
from cutjax.graph import Graph
from cutjax.merge.merged import Merged
from cutjax.mirror import named_leaves
from cutjax.shrink import needed, select
from cutjax.trace import trace

Tasks = Sequence[str] | str


@dataclass(frozen=True)
class Subset:
    """The program of some tasks: `subset(params, *inputs) -> {task: output}`.

    `reads` are the paths of the parameters that it reads, `cost` is that of the shared
    channels and the tasks' own. Inputs of another batch size compile once more.
    """

    tasks: tuple[str, ...]
    reads: tuple[str, ...]
    cost: Cost
    _structure: Any = field(repr=False)
    _places: tuple[int, ...] = field(repr=False)
    _run: Any = field(repr=False)

    def __call__(self, params: Any, *inputs: Any) -> dict[str, Any]:
        """The answers, by task.

        Args:
            params: merged parameters, or what `take` leaves of them.
            *inputs: as the merged function takes them.

        Raises:
            MismatchError: a parameter that the tasks read is missing.
        """
        return self._run(self._leaves(params), *inputs)

    def take(self, params: Any) -> dict[str, Array]:
        """The parameters that the tasks read, by path: all that a device has to hold.

        Args:
            params: merged parameters, or what `take` of more tasks left of them.

        Returns:
            The same arrays, not copied.

        Raises:
            MismatchError: one is missing.
        """
        return dict(zip(self.reads, self._leaves(params), strict=True))

    def _leaves(self, params: Any) -> list[Any]:
        if jax.tree.structure(params) == self._structure:
            leaves = jax.tree.leaves(params)
            return [leaves[i] for i in self._places]
        found = named_leaves(params)
        for path in self.reads:
            if path not in found:
                raise MismatchError(
                    f"{list(self.tasks)} read {path!r}, which these parameters lack; "
                    f"{suggest(path, found)}; pass merged.params, or "
                    f"programs[{self.tasks!r}].take(merged.params)"
                )
        return [found[path] for path in self.reads]


@dataclass(frozen=True)
class Programs:
    """The programs of a merged network: `programs[tasks]` is that of some tasks.

    `tasks` are all there are; their order does not count. A program is made when it is
    asked for, and compiled when it is called or by `compile`.
    """

    tasks: tuple[str, ...]
    _apply: Callable[..., Any] = field(repr=False)
    _graph: Graph = field(repr=False)
    _inputs: tuple[Any, ...] = field(repr=False)
    _made: dict[tuple[str, ...], Subset] = field(default_factory=dict, repr=False)

    def __getitem__(self, tasks: Tasks) -> Subset:
        """The program of these tasks.

        Raises:
            KeepError: an unknown task, or none.
        """
        asked = set(several(tasks)) if isinstance(tasks, Iterable) else {tasks}
        for task in asked - set(self.tasks):
            raise KeepError(f"no task {task!r}; {suggest(str(task), self.tasks)}")
        if not asked:
            raise KeepError(f"no task chosen; there are {list(self.tasks)}")
        chosen = tuple(task for task in self.tasks if task in asked)
        if chosen not in self._made:
            self._made[chosen] = self._make(chosen)
        return self._made[chosen]

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        """All 2^T - 1 subsets of the tasks, small ones first."""
        for count in range(1, len(self.tasks) + 1):
            yield from combinations(self.tasks, count)

    def _make(self, tasks: tuple[str, ...]) -> Subset:
        graph = self._graph
        read, chosen = needed(graph, tasks), select(self._apply, tasks)
        reads = tuple(path for path in graph.shapes if path in read)
        places = tuple(i for i, path in enumerate(graph.shapes) if path in read)

        def run(leaves: Sequence[Any], *inputs: Any) -> dict[str, Any]:
            held = dict(zip(reads, leaves, strict=True))
            # What the tasks do not read is dead code: these zeros never come to be.
            whole = [
                held[path] if path in held else jnp.zeros(s.shape, s.dtype)
                for path, s in graph.shapes.items()
            ]
            return chosen(jax.tree.unflatten(graph.treedef, whole), *inputs)

        cost = graph.cost(tasks=tasks)
        return Subset(tasks, reads, cost, graph.treedef, places, jit(run))

    def compile(self, subsets: Iterable[Tasks] | None = None) -> None:
        """Compile ahead, for inputs as given and parameters on the default device.

        Args:
            subsets: which; all 2^T - 1, if not given.

        Raises:
            KeepError: an unknown task, or none.
        """
        for subset in map(self.__getitem__, self if subsets is None else subsets):
            shapes = [self._graph.shapes[path] for path in subset.reads]
            _ = subset._run.lower(shapes, *self._inputs).compile()


def programs(merged: Merged, inputs: Sequence[Any] | Any) -> Programs:
    """One program per subset of the tasks, which share what they read.

    Args:
        merged: from `average`, `least_squares` or another.
        inputs: one batch of inputs, or its shapes.

    Returns:
        The programs; nothing is compiled yet.

    Raises:
        TraceError: the merged function cannot be traced.

    Example:
        >>> import jax.numpy as jnp, cutjax as cj
        >>> apply = lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"]
        >>> w = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))}
        >>> x = jnp.ones((1, 2))
        >>> net = cj.merge.Network(apply, w, cj.trace(apply, w, x))
        >>> merged = cj.merge.average({"one": net, "two": net}, {}, x)
        >>> found = cj.merge.programs(merged, x)
        >>> found["two"].reads
        ('params/reads/two/b', 'params/shared/a')
        >>> found["one", "two"](merged.params, x)["two"].tolist()
        [[6.0]]
        >>> held = {tasks: found[tasks].take(merged.params) for tasks in found}
        >>> [cj.merge.unique_bytes(held[tasks]) for tasks in found]
        [36, 36, 48]
        >>> cj.merge.unique_bytes(held)  # all programs together
        48

    Reference:
        Wang et al., Stitching Weight-Shared Deep Neural Networks for Efficient
        Multitask Inference on GPU, SECON 2022 (MTS).
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    # Shapes only: programs keep no array alive.
    given = jax.eval_shape(lambda *arrays: arrays, *given)
    shapes = jax.eval_shape(lambda p: p, merged.params)
    graph = trace(merged.apply, shapes, *given)
    return Programs(graph.tasks, merged.apply, graph, given)
