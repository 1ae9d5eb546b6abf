"""Chance, the control of every criterion."""

import numpy as np

from cutjax.saliency.criterion import Criterion, Problem, Scores
from cutjax.saliency.family import criterion


@criterion
def random(seed: int = 0) -> Criterion:
    """Scores drawn uniformly from (0, 1); the same for all tasks.

    Args:
        seed: of the draw.

    Returns:
        A criterion.
    """

    def scores(problem: Problem, sums: None) -> dict[str, Scores]:
        rng = np.random.default_rng(seed)
        return problem.alike(
            {
                g.name: rng.uniform(0.01, 1.0, g.size).astype(np.float32)
                for g in problem.graph.free
            }
        )

    return Criterion("random", scores)
