"""What `trace` found: groups of channels, their axes, their tasks, their cost."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cutjax import dot, show
from cutjax.cost import Activation, Cost, Term, cost_of
from cutjax.dims import Axis, Keep
from cutjax.errors import KeepError, suggest
from cutjax.flow import Flow, alive
from cutjax.given import check_known, chosen_tasks


class Member(NamedTuple):
    """One place of a group: an axis of a parameter, and how the group sits in it.

    `tie` says with which other place it is tied, and by which lines of the user's code;
    the place that the others hang on has none.
    """

    path: str
    axis: int
    layout: Axis
    tie: str = ""

    @property
    def place(self) -> str:
        """`path:axis`."""
        return f"{self.path}:{self.axis}"


@dataclass(frozen=True)
class Group:
    """Channels that live and die together.

    `name` is `path:axis` of the weight that makes them. `pinned` says why nothing of it
    may be cut (None: it may). `tasks` are those that it reaches. `notes` tell where a
    mean, or a sum of what is not zero when masked, runs over the channels. `ordered` is
    the line where a constant tells the channels apart (None: they can change places).
    """

    name: str
    size: int
    members: tuple[Member, ...]
    pinned: str | None = None
    tasks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ordered: str | None = None


@dataclass(frozen=True)
class Graph:
    """The groups of a function, and all that is needed to cut it.

    `axes` gives the layout of every axis of every parameter, by path. `shapes` are
    those of the full parameters, `treedef` their structure, `reach` the tasks that each
    one serves. `terms` are the multiply-adds as functions of the widths, `activations`
    the arrays that they read, `flow` what reaches the outputs by which of them (None:
    stored before cutjax knew of these).
    """

    groups: tuple[Group, ...]
    tasks: tuple[str, ...]
    axes: Mapping[str, tuple[Axis, ...]]
    shapes: Mapping[str, Any]
    treedef: Any
    reach: Mapping[str, tuple[str, ...]]
    terms: tuple[Term, ...]
    inputs: tuple[str, ...] = ()
    on_unknown: str = "raise"
    activations: tuple[Activation, ...] | None = None
    flow: Flow | None = None
    _index: Mapping[str, Group] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "_index", {g.name: g for g in self.groups})

    def __getitem__(self, name: str) -> Group:
        """The group of this name."""
        if name not in self._index:
            raise KeepError(f"no group {name!r}; {suggest(name, self._index)}")
        return self._index[name]

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __str__(self) -> str:
        return show.table(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """What Jupyter shows: a table of the groups, and who reads whom."""
        return show.html(self)

    def to_dot(self) -> str:
        """The graph in the DOT language: a box per group, an arrow per reader.

        Returns:
            Text for `dot -Tsvg`, or for `graphviz.Source` in a notebook.
        """
        return dot.to_dot(self)

    @property
    def free(self) -> tuple[Group, ...]:
        """The groups that may be cut."""
        return tuple(g for g in self.groups if g.pinned is None)

    @property
    def prunable(self) -> float:
        """The share of the parameters that goes if each free group keeps one."""
        least = cost_of(self, {group.name: 1 for group in self.free}, None).params
        return 1 - least / max(self.cost().params, 1)

    def cost(
        self, keep: Keep | None = None, tasks: tuple[str, ...] | None = None
    ) -> Cost:
        """Parameters, multiply-adds (counted as two) and bytes that are left.

        Args:
            keep: the kept channels; all, if not given.
            tasks: count only what `cut` for these tasks leaves; all, if not given.

        Returns:
            The cost; an exact polynomial in the kept widths, nothing is traced again.

        Raises:
            KeepError: `keep` does not fit the graph, or a task is unknown.
        """
        self.check_keep(keep or {}, ())
        widths = {name: int(np.sum(mask)) for name, mask in (keep or {}).items()}
        chosen = None if tasks is None else self.check_tasks(tasks)
        return cost_of(self, widths, chosen)

    def explain(self, name: str) -> str:
        """Why channels are coupled or pinned, with the lines of code that say so.

        Args:
            name: a group, or a parameter path (any unique ending of one).

        Returns:
            Plain text.
        """
        return show.explain(self, name)

    def check_tasks(self, tasks: Any) -> tuple[str, ...]:
        """The chosen tasks as a tuple; all of them for None.

        Raises:
            KeepError: a task is unknown, or none is chosen.
        """
        return self.tasks if tasks is None else chosen_tasks(tasks, self.tasks)

    def answering(self, gone: Iterable[str], tasks: Any = None) -> tuple[str, ...]:
        """The tasks whose outputs depend on the inputs without these groups.

        Args:
            gone: names of groups that keep no channel.
            tasks: the tasks to look at; all, if not given.

        Returns:
            Those of them that still do.

        Raises:
            KeepError: this graph was stored before cutjax knew how to tell.
        """
        chosen, names = self.check_tasks(tasks), frozenset(gone)
        if not names:
            return chosen
        if self.flow is None:
            raise KeepError(
                f"{min(names)!r} keeps no channel; keep one at least, or trace the "
                "function again: this graph was stored before groups could go whole"
            )
        return tuple(alive(self.flow, names, chosen))

    def check_keep(self, keep: Keep, tasks: Any = None) -> None:
        """Check that a keep fits.

        A group may keep no channel where the outputs still depend on the inputs by
        another path: around a residual block, beside a head of attention.

        Args:
            keep: the channels to keep.
            tasks: the tasks that must depend on the inputs; all, if not given. With an
                empty tuple one of them is enough, whichever it is.

        Raises:
            KeepError: unknown group, wrong length, pinned group cut, nothing kept where
                an output needs it.
        """
        check_known("a keep", keep)
        for name, mask in keep.items():
            group, mask = self[name], np.asarray(mask)
            if mask.shape != (group.size,) or mask.dtype != bool:
                raise KeepError(
                    f"keep[{name!r}] is {mask.dtype}{list(mask.shape)}, "
                    f"not bool[{group.size}]"
                )
            if group.pinned is not None and not mask.all():
                raise KeepError(f"{name!r} is pinned: {group.pinned}")
        gone = [name for name, mask in keep.items() if not np.any(mask)]
        chosen = self.check_tasks(tasks or None)
        left = self.answering(gone, chosen)
        lost = [task for task in chosen if task not in left]
        if lost and not (left and tasks == ()):
            names = ", ".join(map(repr, gone))
            outputs = ", ".join(map(repr, lost))
            raise KeepError(
                f"keep of {names} keeps no channel; keep one at least: without "
                f"{'it' if len(gone) == 1 else 'these'} the output of {outputs} does "
                "not depend on the inputs"
            )
