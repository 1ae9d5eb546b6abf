"""python scripts/picture.py   # half a minute; writes docs/net.png

The picture of the README: the demo's parent before and after its harder cut.
"""

from pathlib import Path

import cutjax as cj
from cutjax import demo, plot


def main() -> None:
    """Scores with the demo's data and budget, and draws."""
    job = demo.prepare(Path("runs/parent"))
    data = demo.calibration(job, 0)
    scores = cj.joint(job.apply, job.params, job.graph, job.losses, data)
    tasks, budget = demo.SUBSETS[0], demo.BUDGETS[-1]
    keep, _ = cj.plan(job.graph, scores, tasks=tasks, budget=budget)
    plot.net(job.graph, keep, tasks=tasks).savefig("docs/net.png", dpi=150)


if __name__ == "__main__":
    main()
