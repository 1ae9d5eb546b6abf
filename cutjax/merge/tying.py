"""The kernels that networks of different inputs have in common, fitted to all."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from cutjax.given import check_by_name
from cutjax.inputs import equal_inputs, in_parts
from cutjax.merge import eager
from cutjax.merge.average import kernel_of, precise
from cutjax.merge.crossed import channels_of
from cutjax.merge.join import Parts, start
from cutjax.merge.kernels import (
    Env,
    Solve,
    bias_at,
    check_rows,
    damped,
    is_free,
    measure,
    put,
    renew,
    sample_of,
    shifted,
    sound,
    warn_of_complex,
)
from cutjax.merge.network import Network, Networks
from cutjax.merge.same import same_program
from cutjax.recover import normal
from cutjax.recover.normal import Moments
from cutjax.recover.program import Program, positions, program
from cutjax.recover.rows import (
    groups_of,
    kernel_blocks,
    kernel_from,
    made_rows,
    read_rows,
)

Batches = Mapping[str, Iterable[Any]]


class Side(NamedTuple):
    """A network: its program, its leaves so far, and values alive of its batches.

    `first` are those of the network as it was. `dying`: by equation, see `last_uses`.
    """

    prog: Program
    leaves: dict[str, Any]
    first: list[Env]
    now: list[Env]
    dying: Mapping[int, Sequence[Any]]


def tie(
    networks: Networks,
    shared: Collection[str],
    batches: Batches,
    lockstep: bool,
    damping: float | None,
    rows: int,
    progress: bool,
) -> Parts:
    """Shared kernels and what stays each network's own; see `tied`.

    Args:
        networks: alike, their channels in one order.
        shared: groups.
        batches: see `tied`.
        lockstep: see `tied`.
        damping: see `tied`.
        rows: see `tied`.
        progress: see `tied`.
    """
    check_rows(rows)
    warn_of_complex(networks)
    wanted = "{network: [(x, ...), ...], ...}, each network's own data"
    check_by_name(batches, "batches", wanted)
    sides = {name: _side(net, name, batches) for name, net in networks.items()}
    (one, first), *others = sides.items()
    for name, side in others:
        same_program(first.prog, side.prog, (one, name))
    common = _common(sides, shared)
    for index, path in common.items():
        mean = np.mean([precise(side.leaves[path]) for side in sides.values()], 0)
        for side in sides.values():
            leaf = jnp.asarray(mean, side.leaves[path].dtype)
            _write(side, index, {**side.leaves, path: leaf})
    solve, prog = damped(damping), first.prog
    steps = range(len(prog.frame.jaxpr.eqns))
    for index in tqdm(steps, desc="tie", disable=not progress, leave=False):
        for side in sides.values():
            _advance(side, index, side.first)
        if index in common:
            _fit(sides, index, solve, lockstep, rows)
        elif lockstep and is_free(prog, index):
            for name, side in sides.items():
                _fit({name: side}, index, solve, lockstep, rows)
        for side in sides.values():
            _advance(side, index, side.now if lockstep else ())
            for env in (*side.first, *side.now):
                for var in side.dying.get(index, ()):
                    env.pop(var, None)
    paths = set(common.values())
    own = {
        name: {p: leaf for p, leaf in side.leaves.items() if p not in paths}
        for name, side in sides.items()
    }
    return Parts({p: first.leaves[p] for p in paths}, own, {name: {} for name in sides})


def _side(net: Network, name: str, batches: Batches) -> Side:
    found, empty = batches.get(name, ()), f"no data of {name!r}"
    whole, leaves = equal_inputs(found, net.graph.inputs, empty=empty), net.leaves
    prog, given = in_parts(whole, lambda x: program(net.apply, net.graph, {}, x))
    flat = [[jnp.asarray(leaf) for leaf in jax.tree.leaves(x)] for x in given]
    first, now = ([start(prog, leaves, x) for x in flat] for _ in range(2))
    return Side(prog, leaves, first, now, eager.last_uses(prog))


def _common(sides: Mapping[str, Side], shared: Collection[str]) -> dict[int, str]:
    """By reader, the kernels that read and make shared channels, alike in all."""
    prog, found = next(iter(sides.values())).prog, {}
    for index in (i for i in prog.frame.sites if is_free(prog, i)):
        reader, path = prog.reader(index), kernel_of(prog, index)
        dims = [d for v in reader.outs for d in v.dims]
        ends = (channels_of(prog, d, shared) for d in (reader.site.inner, dims))
        like = {(s.leaves[path].shape, s.leaves[path].dtype) for s in sides.values()}
        if all(ends) and len(like) == 1:
            found[index] = path
    return found


def _advance(side: Side, index: int, envs: Sequence[Env]) -> None:
    """One equation, if it depends on the inputs."""
    if eager.is_data(side.prog, index):
        for env in envs:
            eager.advance(side.prog, index, env)


def _fit(
    sides: Mapping[str, Side], index: int, solve: Solve, lockstep: bool, rows: int
) -> None:
    """One kernel for these networks, and for each the bias that goes with it."""
    found: list[list[Moments]] = []
    wholes, biases = {}, {}
    prog = next(iter(sides.values())).prog
    reader, path = prog.reader(index), kernel_of(prog, index)
    kernel = eager.fetch(prog, next(iter(sides.values())).now[0], prog.kernel(index))
    if not kernel.size or not jnp.issubdtype(kernel.dtype, jnp.floating):
        return
    groups = groups_of(reader, prog.evaluator.k)
    for name, side in sides.items():
        each = range(len(side.now))
        its = [_measured(side, index, kernel, i, lockstep, rows) for i in each]
        bias = bias_at(side.prog, index, kernel, side.leaves)
        if bias is not None:
            biases[name], wholes[name] = bias, normal.merged(its)
        found.append([_share(m, its, wholes.get(name)) for m in its])
    prior = np.asarray(kernel_blocks(reader, np.asarray(kernel, np.float64), groups))
    blocks = solve(found, prior, False).kernel
    new = kernel_from(reader, blocks, np.asarray(kernel), groups)
    for name, side in sides.items():
        leaf = side.leaves[path]
        where = positions(side.prog, side.prog.kernel(index), leaf.shape)
        leaves = {**side.leaves, path: put(leaf, where, new)}
        if name in biases:
            shift = normal.shift(wholes[name], blocks)
            leaves = shifted(side.prog, index, leaves, biases[name], shift)
        _write(side, index, leaves, biases.get(name))


def _measured(
    side: Side, index: int, kernel: Any, batch: int, lockstep: bool, rows: int
) -> Moments:
    """What a network reads and should make, of one batch."""
    prog = side.prog
    reader, eqn = prog.reader(index), prog.frame.jaxpr.eqns[index]
    groups = groups_of(reader, prog.evaluator.k)
    size = reader, kernel, groups, len(side.now), rows
    sample = sample_of(*size, (index, batch))
    env = (side.now if lockstep else side.first)[batch]
    b = read_rows(reader, env[eqn.invars[reader.site.at]], kernel, groups, sample)
    y = made_rows(reader, side.first[batch][eqn.outvars[0]], kernel, groups, sample)
    return sound(measure(b, y), kernel_of(prog, index))


def _share(m: Moments, its: Sequence[Moments], whole: Moments | None) -> Moments:
    """A batch so weighed that networks count alike, however much data each has.

    Where there is a bias, each network's own, of deviations from the network's `whole`.
    """
    weight = 1 / sum(part.count for part in its)
    sums = (m.count, m.gram, m.cross, m.square)
    count, gram, cross, square = (weight * value for value in sums)
    read, made = m.read, m.made
    if whole is not None:
        read, made = read - whole.read, made - whole.made
    return Moments(count, read, made, gram, cross, square)


def _write(side: Side, index: int, leaves: dict[str, Any], bias: Any = None) -> None:
    """New parameters, for all that follows."""
    side.leaves.update(leaves)
    paths = (kernel_of(side.prog, index), bias and bias[0])
    for env in side.now:
        renew(side.prog, env, leaves, paths)
