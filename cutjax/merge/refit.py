"""The kernels of a merged network refitted to the networks that went into it.

Reader after reader, in execution order. A shared channel should be, after whatever
normalises or shifts it, the mean of the channels that went into it; a network's own
channel what it was. What is read is the merged network's, already refitted upstream
(least squares), or each network's own (RegMean, MTZ): then a shared kernel is the mean
of the kernels, weighed by the second moments of what they read. REPAIR only scales.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from cutjax.errors import KeepError
from cutjax.given import said
from cutjax.inputs import equal_inputs, in_parts
from cutjax.merge import eager
from cutjax.merge.average import averaged, kernel_of
from cutjax.merge.join import Parts, joint, start
from cutjax.merge.kernels import (
    Env,
    bias_at,
    by_members,
    check_rows,
    damped,
    is_free,
    measure,
    put,
    renew,
    sample_of,
    scaled,
    shifted,
    sound,
    warn_of_complex,
)
from cutjax.merge.merged import Merged, merged_apply, packed, unpacked
from cutjax.merge.network import Networks, check_alike, evaluating
from cutjax.merge.own import moved, operands, own_step
from cutjax.merge.serving import check_serving
from cutjax.merge.sharing import Sharing, check
from cutjax.merge.targets import Batch, Job, Way, wanted_of
from cutjax.merge.ways import MIXING, at_width
from cutjax.mirror import named_leaves
from cutjax.readers import channel_axes
from cutjax.recover.normal import Moments
from cutjax.recover.program import Program, positions, read
from cutjax.recover.rows import (
    groups_of,
    kernel_blocks,
    kernel_from,
    made_rows,
    read_rows,
)


def least_squares(
    networks: Networks,
    sharing: Sharing,
    batches: Iterable[Any],
    *,
    merged: Merged | None = None,
    damping: float | None = None,
    rows: int = 32,
    progress: bool = True,
) -> Merged:
    """One network whose kernels are fitted, in closed form, to those it is made of.

    Reader after reader: a shared channel should be, after whatever scales and shifts
    it, the mean of the channels that went into it, a network's own channel what it was;
    what is read is what the merged network itself reads, already fitted upstream. No
    labels. Memory: what is alive of all batches at one place of the architecture, of
    the merged network and of the originals. Kernels that are read in several places, or
    in loops, stay as they are.

    Args:
        networks: by name, alike.
        sharing: see `average`.
        batches: `(x, ...)` of calibration data, or bare inputs, of equal sizes (others
            are left out), from the data of all networks; labels are not looked at.
        merged: where to start, of this sharing; else `average`.
        damping: lambda, as a share of the mean square of the features; None chooses it
            per reader by every fourth batch, of two or three by the last one, of one
            by some of its examples.
        rows: per feature, rows that suffice; of more, evenly spread ones are taken,
            but for what costs little: narrow readers see most of what there is.
        progress: show a progress bar.

    Returns:
        The function and its parameters.

    Raises:
        DataError: no data, NaN in what a reader reads or should make, or a damping or
            rows that are not above 0.
        KeepError: the sharing does not fit, or cannot be, or is not that of `merged`.
        MismatchError: the networks are not of one architecture, or do not take the
            inputs.

    Reference:
        Nasery et al., PLeaS: Merging Models with Permutations and Least Squares,
        CVPR 2025, eq. 4; here in lockstep.
    """
    given = networks, sharing, batches, merged
    return _refitted(*given, Way(damped(damping)), rows, progress)


def mtz(
    networks: Networks,
    sharing: Sharing,
    batches: Iterable[Any],
    *,
    merged: Merged | None = None,
    damping: float | None = None,
    rows: int = 32,
    progress: bool = True,
) -> Merged:
    """One network whose shared kernels are means weighed by what each network reads.

    With H the second moment of what a network reads at a kernel W, the merged kernel is
    (sum H)^-1 sum H W: RegMean, and MTZ's merged weights. Biases are fitted along.

    Args:
        networks: see `least_squares`.
        sharing: see `least_squares`.
        batches: see `least_squares`.
        merged: see `least_squares`.
        damping: see `least_squares`.
        rows: see `least_squares`.
        progress: show a progress bar.

    Returns:
        The function and its parameters; the networks' own channels read as averaged.

    Raises:
        DataError: no data, NaN in what a reader reads or should make, or a damping or
            rows that are not above 0.
        KeepError: the sharing does not fit, or cannot be, or is not that of `merged`.
        MismatchError: the networks are not of one architecture.

    Reference:
        Jin et al., RegMean, ICLR 2023, eq. 2; He, Zhou & Thiele, Multi-Task Zipping,
        NeurIPS 2018, eq. 8.
    """
    given = networks, sharing, batches, merged
    way = Way(damped(damping), originals=True, apart=True)
    return _refitted(*given, way, rows, progress)


def repair(
    networks: Networks,
    sharing: Sharing,
    batches: Iterable[Any],
    *,
    merged: Merged | None = None,
    rows: int = 64,
    progress: bool = True,
) -> Merged:
    """One network whose channels are as wide as those that went into them.

    What every reader makes is scaled, and where there is a bias shifted, to the mean of
    the standard deviations and of the means that the networks have there, of those that
    went into a channel. For networks without BatchNorm; with it, `recalibrate` the
    `train_apply`.

    Args:
        networks: see `least_squares`.
        sharing: see `least_squares`.
        batches: see `least_squares`.
        merged: see `least_squares`.
        rows: see `least_squares`.
        progress: show a progress bar.

    Returns:
        The function and its parameters.

    Raises:
        DataError: see `least_squares`.
        KeepError: see `least_squares`.
        MismatchError: see `least_squares`.

    Reference:
        Jordan et al., REPAIR: REnormalizing Permuted Activations for Interpolation
        Repair, ICLR 2023, eq. 5; here in lockstep, over any number of networks.
    """
    given = networks, sharing, batches, merged
    return _refitted(*given, Way(scaled, apart=True), rows, progress)


def _refitted(
    networks: Networks,
    sharing: Sharing,
    batches: Iterable[Any],
    merged: Merged | None,
    way: Way,
    rows: int,
    progress: bool,
) -> Merged:
    check_alike(networks)
    check_rows(rows)
    warn_of_complex(networks)
    graph = next(iter(networks.values())).graph
    check(graph, tuple(networks), sharing)
    given = equal_inputs(batches, graph.inputs, empty="no data to merge by")
    both, inputs = in_parts(given, lambda x: joint(networks, sharing, x))
    check_serving(both)
    full = {name: at_width(prog, {}) for name, prog in both.own.items()}
    wanted = {name: set(both.wanted(name)) for name in both.own}
    job = Job(both, full, wanted, rows, way)
    parts = averaged(networks, both)
    if merged is not None and not isinstance(merged, Merged):
        raise KeepError(f"merged is {said(merged)}; pass what `average` returned")
    if merged is not None:
        parts = _checked(unpacked(merged.params, networks), parts)
    held = [_begin(job, parts, networks, x) for x in inputs]
    steps = range(len(both.shared.frame.jaxpr.eqns))
    dying = [eager.last_uses(prog) for prog in _programs(job)]
    with evaluating(networks):
        for index in tqdm(steps, desc="refit", disable=not progress, leave=False):
            for batch in held:
                _originals(job, batch, index)
            if index in both.trunk and is_free(both.shared, index):
                parts = _refit_shared(job, parts, held, index)
            for name, prog in both.own.items():
                if not way.originals and index in wanted[name] and is_free(prog, index):
                    parts = _refit_own(job, parts, held, name, index)
            for batch in held:
                _advance(job, parts, batch, index)
                for env, last in zip(_envs(batch), dying, strict=True):
                    for var in last.get(index, ()):
                        env.pop(var, None)
    return Merged(merged_apply(networks, sharing), packed(parts))


def _checked(parts: Parts, like: Parts) -> Parts:
    """Where to start, if it is of the sharing.

    Raises:
        KeepError: it is not; names the first parameter that is missing or differs.
    """
    found, wanted = (named_leaves(packed(p)) for p in (parts, like))
    for path, leaf in wanted.items():
        has = list(jnp.shape(found[path])) if path in found else "missing"
        if has != list(leaf.shape):
            raise KeepError(
                f"`merged` is of another sharing: {path!r} is {has}, not "
                f"{list(leaf.shape)}; pass what was merged by this one"
            )
    return parts


def _programs(job: Job) -> list[Program]:
    return [job.joint.shared, *job.joint.own.values(), *job.full.values()]


def _envs(batch: Batch) -> list[Env]:
    return [batch.shared, *batch.own.values(), *batch.full.values()]


def _begin(job: Job, parts: Parts, networks: Networks, inputs: Any) -> Batch:
    flat = list(map(jnp.asarray, jax.tree.leaves(inputs)))
    own = job.joint.own.items()
    return Batch(
        start(job.joint.shared, parts.shared, flat),
        {name: start(prog, parts.own[name], flat) for name, prog in own},
        {n: start(prog, networks[n].leaves, flat) for n, prog in job.full.items()},
    )


def _originals(job: Job, batch: Batch, index: int) -> None:
    for name, prog in job.full.items():
        if eager.is_data(prog, index):
            eager.advance(prog, index, batch.full[name])


def _advance(job: Job, parts: Parts, batch: Batch, index: int) -> None:
    shared = job.joint.shared
    if index in job.joint.trunk and eager.is_data(shared, index):
        eager.advance(shared, index, batch.shared)
    for name, prog in job.joint.own.items():
        if index in job.wanted[name] and eager.is_data(prog, index):
            env = batch.own[name]
            for atom in prog.frame.jaxpr.eqns[index].invars:
                _ = eager.fetch(prog, env, atom)
            own_step(job.joint, name, index, env, batch.shared, parts.reads[name])


def _refit_shared(job: Job, parts: Parts, held: list[Batch], index: int) -> Parts:
    """The kernel of a shared reader, and the bias after it."""
    prog = job.joint.shared
    reader, eqn = prog.reader(index), prog.frame.jaxpr.eqns[index]
    data, atom = (eqn.invars[i] for i in (reader.site.at, 1 - reader.site.at))
    kernel = eager.fetch(prog, held[0].shared, atom)
    if not kernel.size or not jnp.issubdtype(kernel.dtype, jnp.floating):
        return parts
    groups, path = groups_of(reader, prog.evaluator.k), kernel_of(prog, index)
    found: dict[str, list[Moments]] = {}
    members: dict[str, np.ndarray] = {}
    size = reader, kernel, groups, len(held), job.rows
    for number, batch in enumerate(held):
        sample = sample_of(*size, (index, number))
        for name, (own, target, there) in wanted_of(job, batch, index).items():
            value = batch.shared[data] if own is None else own
            b = read_rows(reader, value, kernel, groups, sample)
            y = made_rows(reader, target, kernel, groups, sample)
            found.setdefault(name, []).append(sound(measure(b, y), path))
            there = jnp.broadcast_to(there, target.shape)
            one = made_rows(reader, there, kernel, groups)[:, 0]
            members[name] = np.asarray(one > 0)
    prior = np.asarray(kernel_blocks(reader, np.asarray(kernel, np.float64), groups))
    bias = bias_at(prog, index, kernel, parts.shared)
    solve = job.way.solve
    blocks, shift = by_members(found, members, prior, solve, bias is not None)
    new = kernel_from(reader, blocks, np.asarray(kernel), groups)
    where = positions(prog, atom, parts.shared[path].shape)
    leaves = {**parts.shared, path: put(parts.shared[path], where, new)}
    leaves = shifted(prog, index, leaves, bias, shift)
    for batch in held:
        renew(prog, batch.shared, leaves, (path, bias and bias[0]))
    return parts._replace(shared=leaves)


def _refit_own(
    job: Job, parts: Parts, held: list[Batch], name: str, index: int
) -> Parts:
    """The kernel of a network's own reader, from shared channels and from its own."""
    prog, full = job.joint.own[name], job.full[name]
    reader, eqn = prog.reader(index), prog.frame.jaxpr.eqns[index]
    at, (out,), path = reader.site.at, eqn.outvars, kernel_of(prog, index)
    mixing = job.joint.ways[name].get(index) == MIXING
    found, kernel, groups = [], None, 1
    for number, batch in enumerate(held):
        env = batch.own[name]
        for atom in eqn.invars:
            _ = eager.fetch(prog, env, atom)
        args = [read(env, atom) for atom in eqn.invars]
        if mixing:
            args = operands(
                job.joint, name, index, env, batch.shared, parts.reads[name]
            )
        if kernel is None:
            kernel = args[1 - at]
            if not kernel.size or not jnp.issubdtype(kernel.dtype, jnp.floating):
                return parts
            groups = 1 if mixing else groups_of(reader, prog.evaluator.k)
        sample = sample_of(reader, kernel, groups, len(held), job.rows, (index, number))
        whole = batch.full[name][full.frame.jaxpr.eqns[index].outvars[0]]
        target = prog.evaluator.cut_const(whole, prog.frame.values[out])
        b = read_rows(reader, args[at], kernel, groups, sample)
        y = made_rows(reader, target, kernel, groups, sample)
        found.append(sound(measure(b, y), path))
    prior = np.asarray(kernel_blocks(reader, np.asarray(kernel, np.float64), groups))
    bias = bias_at(prog, index, kernel, parts.own[name])
    fit = job.way.solve([found], prior, bias is not None)
    new = np.asarray(kernel_from(reader, fit.kernel, np.asarray(kernel), groups))
    return _written_own(job, parts, held, name, index, (new, mixing, bias, fit.shift))


def _written_own(
    job: Job, parts: Parts, held: list[Batch], name: str, index: int, what: Any
) -> Parts:
    new, mixing, bias, shift = what
    prog = job.joint.own[name]
    reader, atom = prog.reader(index), prog.kernel(index)
    path, own, reads = kernel_of(prog, index), {**parts.own[name]}, parts.reads[name]
    if mixing:
        leaf = reads[path]
        index_of = np.arange(leaf.size).reshape(leaf.shape)
        where = moved(job.joint, name, index, {path: index_of}, cast=False)
        where = np.asarray(where)
        axes = channel_axes(reader, 1 - reader.site.at)
        axis = next((a for a in axes if where.shape[a] != new.shape[a]), axes[0])
        n = where.shape[axis]
        reads = {**reads, path: put(leaf, where, np.take(new, range(n), axis))}
        new = np.take(new, range(n, new.shape[axis]), axis)
    if new.size:
        where = positions(prog, atom, own[path].shape)
        own[path] = put(own[path], where, new)
    own = shifted(prog, index, own, bias, shift)
    for batch in held:
        renew(prog, batch.own[name], own, (path, bias and bias[0]))
    return parts._replace(
        own={**parts.own, name: own}, reads={**parts.reads, name: reads}
    )
