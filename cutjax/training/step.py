"""One training step: gradient, accumulation, update, average; or several in a scan."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from cutjax._jit import jit
from cutjax.data.examples import inputs_in, rows as rows_of
from cutjax.errors import MismatchError
from cutjax.training.mesh import Layout
from cutjax.training.parts import (
    TrainApply,
    divide,
    heeding,
    join,
    of_type,
    updated,
    wide,
)

Loss = Callable[[Any, dict[str, Array]], tuple[Array, dict[str, Array]]]
Augment = Callable[[Any, Any], Any]


class Moving(NamedTuple):
    """What a step changes. The last four are None where they are not asked for.

    Attributes:
        params: as the last step left them.
        opt_state: of the optimiser.
        average: of the parameters after each update, debiased; the start before any.
            Of 32 bits at least, like `gathered`, whatever the parameters are.
        updates: how many are in the average.
        gathered: the mean gradient of the parts since the last update.
        parts: how many these are.
    """

    params: Any
    opt_state: Any
    average: Any = None
    updates: Int[Array, ""] | None = None
    gathered: Any = None
    parts: Int[Array, ""] | None = None


def begin(
    params: Any,
    optimizer: optax.GradientTransformation,
    names: tuple[str, ...],
    *,
    accumulate: int = 1,
    ema: float | None = None,
) -> Moving:
    """The loop's state before its first step.

    Args:
        params: where to start.
        optimizer: whose state to begin.
        names: top-level entries of `params` that are state.
        accumulate: parts per update.
        ema: decay of the average, None for none.

    Returns:
        The state.
    """
    free, _ = divide(params, names)
    moving = Moving(params, optimizer.init(free))
    zero = jnp.zeros((), jnp.int32)
    if ema is not None:
        moving = moving._replace(average=jax.tree.map(wide, params), updates=zero)
    if accumulate > 1:
        gathered = jax.tree.map(lambda leaf: jnp.zeros_like(wide(leaf)), free)
        moving = moving._replace(gathered=gathered, parts=zero)
    # What is weakly typed would compile the step a second time.
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), moving)


def check_opt_state(given: Any, new: Any) -> None:
    """Check that an optimiser's state is one for these parameters.

    Args:
        given: the state to go on with.
        new: the one that the optimiser would begin with.

    Raises:
        ValueError: another structure, or a leaf of another shape.
    """
    if jax.tree.structure(given) != jax.tree.structure(new):
        raise ValueError(
            "fit: opt_state has another structure than optimizer.init(params): it is "
            "of another optimiser or of other parameters (use cut_state if these were "
            "cut)"
        )
    for (path, leaf), want in zip(
        jax.tree_util.tree_leaves_with_path(given), jax.tree.leaves(new), strict=True
    ):
        if jnp.shape(leaf) != jnp.shape(want):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"fit: opt_state {name!r} is {list(jnp.shape(leaf))}, expected "
                f"{list(jnp.shape(want))}; use cut_state if the parameters were cut"
            )


def make_step(
    train_apply: TrainApply,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    names: tuple[str, ...],
    *,
    accumulate: int = 1,
    ema: float | None = None,
    where: Layout | None = None,
    augment: Augment | None = None,
    seed: int = 0,
) -> Callable[..., tuple[Moving, dict[str, Array]]]:
    """A step as a pure function `(moving, (rows, number), x, y) -> (moving, metrics)`.

    Args:
        train_apply: see `cutjax.fit.fit`.
        loss: see there.
        optimizer: as given to `begin`.
        names: top-level entries of the parameters that are state.
        accumulate: parts per update; a step is one part.
        ema: decay of the average.
        where: how arrays lie on several devices.
        augment: `(key, x) -> x`; the key is drawn from `seed` and the step's number.
        seed: see there.

    Returns:
        The step, not jitted.
    """

    def objective(free: Any, fixed: Any, x: Any, y: dict[str, Array]) -> Any:
        outputs, updates = train_apply(join(free, fixed), *inputs_in(x))
        value, metrics = _answered(loss(outputs, y))
        return value, (dict(updates or {}), metrics)

    def step(
        moving: Moving, part: tuple[Array, Array], x: Any, y: dict[str, Array]
    ) -> tuple[Moving, dict[str, Array]]:
        rows, number = part
        free, fixed = divide(moving.params, names)
        batch: Any = rows_of((x, y), rows)
        if where is not None:
            batch = jax.lax.with_sharding_constraint(batch, where.batch)
        if augment is not None:
            key = jax.random.fold_in(jax.random.key(seed), number)
            batch = augment(key, batch[0]), batch[1]
        grad = jax.value_and_grad(objective, has_aux=True)
        (value, (updates, metrics)), slope = grad(free, fixed, *batch)
        extra = {"value": value}
        if accumulate == 1:
            extra["value_fn"] = lambda near: objective(near, fixed, *batch)[0]
        given = optimizer, accumulate, moving, free, slope, extra
        moving, free, landed = _descend(*given)
        params = join(free, fixed)
        if updates:
            params = updated(params, updates)
        moving = moving._replace(params=params)
        if ema is not None:
            moving = _averaged(moving, landed, ema)
        if where is not None:
            # XLA might leave some divided, and compile the next step for that.
            moving = jax.lax.with_sharding_constraint(moving, where.whole)
        return moving, {**metrics, "loss": value}

    return step


def compiled(step: Callable[..., Any], scan: int) -> Callable[..., Any]:
    """The step under jit, or `scan` of them in one call.

    Args:
        step: from `make_step`.
        scan: steps per call; with more than one, rows, their steps' numbers and metrics
            get a leading axis.

    Returns:
        A function of the same arguments.
    """

    # Not donated: the caller keeps `params`, and `best` may be the very same arrays.
    def several(moving: Moving, parts: tuple[Array, Array], x: Any, y: Any) -> Any:
        return jax.lax.scan(lambda now, part: step(now, part, x, y), moving, parts)

    return jit(several if scan > 1 else step)


def _answered(made: Any) -> tuple[Array, Mapping[str, Any]]:
    """The value and the metrics of a loss, once they are known to be that."""
    pair = tuple(made) if isinstance(made, tuple | list) else ()
    if len(pair) == 2 and isinstance(pair[1], Mapping):
        value, metrics = pair
        shapes = jnp.shape(value), {name: jnp.shape(v) for name, v in metrics.items()}
        if not any([shapes[0], *shapes[1].values()]):
            return value, metrics
        found = f"arrays of shapes {shapes}"
    elif isinstance(made, jax.Array):
        found = f"one array of shape {list(made.shape)}"
    else:
        found = f"{[type(part).__name__ for part in pair] or type(made).__name__}"
    raise MismatchError(
        f"fit: loss returned {found}, expected (scalar, {{name: scalar}}); return "
        "(value, {}) where there is no metric, and the mean of values per example"
    )


def _descend(
    optimizer: optax.GradientTransformation,
    accumulate: int,
    moving: Moving,
    free: Any,
    slope: Any,
    extra: dict[str, Any],
) -> tuple[Moving, Any, Bool[Array, ""] | bool]:
    """The update, where this part completes one; and whether it does.

    `extra`: what optimisers that look at the loss are told besides the gradient.
    """
    told = heeding(optimizer)
    if accumulate == 1:
        extra = {**extra, "grad": slope}
        change, opt_state = told.update(slope, moving.opt_state, free, **extra)
        free = optax.apply_updates(free, change)
        return moving._replace(opt_state=opt_state), free, True
    seen = jnp.asarray(moving.parts) + 1
    mean = jax.tree.map(
        lambda m, g: m + (g.astype(m.dtype) - m) / seen, moving.gathered, slope
    )

    def land() -> Any:
        whole = of_type(mean, slope)
        given = whole, moving.opt_state, free
        change, opt_state = told.update(*given, **extra, grad=whole)
        zeros = jax.tree.map(jnp.zeros_like, mean)
        return optax.apply_updates(free, change), opt_state, zeros

    # Not optax.MultiSteps: that runs the optimiser for every part, and fails on a state
    # that holds a random key.
    landed = seen == accumulate
    free, opt_state, gathered = jax.lax.cond(
        landed, land, lambda: (free, moving.opt_state, mean)
    )
    parts = jnp.where(landed, 0, seen)
    moving = moving._replace(opt_state=opt_state, gathered=gathered, parts=parts)
    return moving, free, landed


def _averaged(moving: Moving, landed: Bool[Array, ""] | bool, decay: float) -> Moving:
    """The average with one more update in it: weight d^i, normalised.

    State is averaged too: the statistics of averaged parameters are, to first order,
    averages of the statistics.
    """
    updates = jnp.asarray(moving.updates) + landed
    # 1 - d^n without the cancellation that float32 would suffer.
    total = -jnp.expm1(jnp.maximum(updates, 1) * math.log(decay))
    weight = jnp.where(landed, (1 - decay) / total, 0.0)

    def mix(mean: Array, leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return (mean + weight * (leaf.astype(mean.dtype) - mean)).astype(mean.dtype)

    average = jax.tree.map(mix, moving.average, moving.params)
    return moving._replace(average=average, updates=updates)
