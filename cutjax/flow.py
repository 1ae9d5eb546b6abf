"""Whether outputs still depend on the inputs when whole groups are gone.

A contraction over no channels is zero whatever comes in, and channels that are gone
carry nothing. What flows on is followed once, while tracing: from each contraction to
those that read its result, through sums (one operand is enough), products (a factor
that would be zero takes all with it; one that would be a constant, such as a gate
`sigmoid(0 + bias)`, does not), loops and branches. Which outputs a set of groups cuts
off is then a least fixpoint over a small graph; nothing is traced again.

Where it is not sure the answer is "depends": an operation that is not known to keep
zeros is taken to make a constant of them.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cutjax._compat import Literal, scan_counts
from cutjax.dims import Axis, count, leaves
from cutjax.unify import Var
from cutjax.zeros import KEEPS, OTHERS, PRODUCTS

INPUTS = -1
"""The number of the inputs among what feeds a node."""


class Node(NamedTuple):
    """Something is computed here that is nothing where any of `axes` is empty.

    Of each part of `needs`, one of the nodes of these numbers has to be alive.
    """

    axes: tuple[Axis, ...]
    needs: tuple[tuple[int, ...], ...]


class Flow(NamedTuple):
    """Nodes in order of execution, and what reaches the outputs.

    `ends`: per task, for each array of its output, the nodes of which one has to be
    alive; arrays that never depend on the inputs are left out.
    """

    nodes: tuple[Node, ...]
    ends: Mapping[str, tuple[tuple[int, ...], ...]]


def alive(flow: Flow, gone: Collection[str], tasks: Collection[str]) -> list[str]:
    """The tasks that still depend on the inputs when these groups are gone.

    Args:
        flow: of a graph.
        gone: names of groups that keep no channel.
        tasks: which tasks to look at.

    Returns:
        Those of `tasks`, in order.
    """
    widths = dict.fromkeys(gone, 0)
    waiting = [
        (i, node.needs)
        for i, node in enumerate(flow.nodes)
        if all(count(axis, widths) for axis in node.axes)
    ]
    live, before = {INPUTS}, -1
    while len(live) != before:
        before, left = len(live), []
        for i, needs in waiting:
            if all(not live.isdisjoint(need) for need in needs):
                live.add(i)
            else:
                left.append((i, needs))
        waiting = left
    return [
        task
        for task in tasks
        if all(not live.isdisjoint(end) for end in flow.ends[task])
    ]


class Reach(NamedTuple):
    """What an array depends on, as a set of bits; `const`: not zero without these."""

    bits: int
    const: bool


NOTHING = Reach(0, True)


def flow_of(
    frame: Any, freeze: Callable[[Var], Axis], outputs: Sequence[str | None]
) -> Flow:
    """Follow a walked function from its inputs to the outputs of its tasks.

    Args:
        frame: an inferred jaxpr.
        freeze: the axis of a variable.
        outputs: the task of each output; None for state.

    Returns:
        The flow.
    """
    found = _Follower(freeze)
    ins = [Reach(int(frame.values[v].data), True) for v in frame.jaxpr.invars]
    ends: dict[str, dict[tuple[int, ...], None]] = {}
    for task, reach in zip(outputs, found.run(frame, ins), strict=True):
        if task is not None:
            some = ends.setdefault(task, {})
            some |= {numbers(reach.bits): None} if reach.bits else {}
    nodes = tuple(
        Node(axes, tuple(map(numbers, needs))) for axes, needs in found.nodes.values()
    )
    return Flow(nodes, {task: tuple(some) for task, some in ends.items()})


def numbers(bits: int) -> tuple[int, ...]:
    """The nodes in a set of bits; the lowest bit is the inputs.

    Example:
        >>> numbers(0b1101)
        (-1, 1, 2)
    """
    out = []
    while bits:
        low = bits & -bits
        out.append(low.bit_length() - 2)
        bits ^= low
    return tuple(out)


class _Follower:
    """Walks frames forwards; loops until nothing new flows round."""

    def __init__(self, freeze: Callable[[Var], Axis]):
        self.freeze = freeze
        self.nodes: dict[Any, tuple[tuple[Axis, ...], tuple[int, ...]]] = {}
        self._order: dict[Any, int] = {}

    def run(self, frame: Any, ins: Sequence[Reach]) -> list[Reach]:
        env = dict(zip(frame.jaxpr.invars, ins, strict=True))

        def read(atom: Any) -> Reach:
            return NOTHING if isinstance(atom, Literal) else env.get(atom, NOTHING)

        for index, eqn in enumerate(frame.jaxpr.eqns):
            args = [read(atom) for atom in eqn.invars]
            env.update(
                zip(eqn.outvars, self._step(frame, index, eqn, args), strict=True)
            )
        return [read(atom) for atom in frame.jaxpr.outvars]

    def _step(self, frame: Any, index: int, eqn: Any, args: list[Reach]) -> list[Reach]:
        subs, n = frame.subs.get(index), len(eqn.outvars)
        if not any(a.bits for a in args):
            return [NOTHING] * n
        if subs:
            return self._nested(subs, eqn, args)
        site = frame.sites.get(index)
        if site is not None and (found := self._axes(frame, eqn, site)):
            return [self._node((id(frame), index), found, args)] * n
        if eqn.primitive in PRODUCTS:
            return [self._product((id(frame), index), (), args)] * n
        return [_joined(eqn, args)] * n

    def _axes(self, frame: Any, eqn: Any, site: Any) -> tuple[Axis, ...]:
        """Axes with groups in them that a contraction or a sum has to do with."""
        summed = eqn.primitive not in PRODUCTS
        values = [] if summed else [frame.read(a) for a in (*eqn.invars, *eqn.outvars)]
        dims = [*site.inner, *(d for value in values for d in value.dims)]
        frozen = dict.fromkeys(map(self.freeze, dims))
        return tuple(axis for axis in frozen if any(True for _ in leaves(axis)))

    def _node(self, key: Any, axes: tuple[Axis, ...], args: list[Reach]) -> Reach:
        needs = _needs([a for a in args if a.bits])
        return Reach(self._bit(key, axes, needs), False)

    def _product(self, key: Any, axes: tuple[Axis, ...], args: list[Reach]) -> Reach:
        data = [a for a in args if a.bits]
        needs, const = _needs(data), all(a.const for a in data)
        if len(needs) == 1:
            return Reach(needs[0], const)
        return Reach(self._bit(key, axes, needs), const)

    def _bit(self, key: Any, axes: tuple[Axis, ...], needs: tuple[int, ...]) -> int:
        # In a loop a node is met again, with more that reaches it.
        self.nodes[key] = axes, needs
        return 2 << self._order.setdefault(key, len(self._order))

    def _nested(self, subs: Sequence[Any], eqn: Any, args: list[Reach]) -> list[Reach]:
        if "branches" in eqn.params:
            which, *inner = args
            several = [self.run(sub, inner) for sub in subs]
            return [_any([which, *outs]) for outs in zip(*several, strict=True)]
        (sub, *more), n = subs, len(eqn.outvars)
        same = not more and len(sub.jaxpr.invars) == len(args)
        if same and "length" in eqn.params:
            return self._scan(sub, eqn, args)
        if same and len(sub.jaxpr.outvars) == n:
            return self.run(sub, args)
        return self._round(subs, n, _any(args))

    def _scan(self, sub: Any, eqn: Any, args: list[Reach]) -> list[Reach]:
        consts, carried = scan_counts(eqn.params)
        while True:
            outs = self.run(sub, args)
            ring = slice(consts, consts + carried)
            pairs = zip(args[ring], outs[:carried], strict=True)
            after = [_any(pair) for pair in pairs]
            if after == args[ring]:
                return outs
            args = [*args[:consts], *after, *args[consts + carried :]]

    def _round(self, subs: Sequence[Any], n: int, every: Reach) -> list[Reach]:
        """Any other loop: everything may reach everything."""
        while True:
            outs = [
                reach
                for sub in subs
                for reach in self.run(sub, [every] * len(sub.jaxpr.invars))
            ]
            more = _any([every, *outs])
            if more == every:
                return [every] * n
            every = more


def _any(some: Sequence[Reach]) -> Reach:
    bits, const = 0, False
    for reach in some:
        bits |= reach.bits
        const |= reach.const
    return Reach(bits, const)


def _needs(data: Sequence[Reach]) -> tuple[int, ...]:
    """What has to be alive for a product of these not to be zero or a constant."""
    sure = tuple(dict.fromkeys(a.bits for a in data if not a.const))
    every = 0
    for a in data:
        every |= a.bits
    return sure or (every,)


def _joined(eqn: Any, args: Sequence[Reach]) -> Reach:
    """Of any other operation: what any operand depends on."""
    if len(args) == 1:
        (arg,) = args
        same = arg.const or eqn.primitive in KEEPS
        return arg if same else Reach(arg.bits, True)
    bits = _any(args).bits
    if eqn.primitive not in KEEPS:
        return Reach(bits, True)
    if eqn.primitive is jax.lax.div_p or eqn.primitive is jax.lax.pow_p:
        return Reach(bits, args[0].const)
    # A scalar beside an array (`max(x, 0)`) may keep its zeros.
    test = OTHERS.get(eqn.primitive)
    const = False
    for at, (atom, arg) in enumerate(zip(eqn.invars, args, strict=True)):
        plain = isinstance(atom, Literal) and not np.ndim(atom.val)
        zero = plain and test is not None and test(at, float(np.real(atom.val)))
        const |= arg.const and not zero
    return Reach(bits, const)
