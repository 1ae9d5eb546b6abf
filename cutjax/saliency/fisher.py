"""Second-order change of the loss, by the empirical Fisher information of a gate."""

from cutjax.saliency.criterion import (
    Criterion,
    Problem,
    Scores,
    Sums,
)
from cutjax.saliency.family import criterion
from cutjax.saliency.taylor import SQUARE, by_task


@criterion
def fisher() -> Criterion:
    """Half the mean over examples of (dL/dgate)^2.

    Returns:
        A criterion, in units of the loss.

    Reference:
        Theis et al., Faster gaze prediction with dense networks and Fisher pruning,
        2018, eq. 10.
    """

    def scores(problem: Problem, sums: Sums) -> dict[str, Scores]:
        return by_task(problem, {g: v / 2 for g, v in sums.mean().items()})

    return Criterion("fisher", scores, SQUARE)
