"""`cutjax trace`."""

import json
from dataclasses import dataclass
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class Trace:
    """Print the channel groups of a model: what lives and dies together, and why.

    One line per group: channels, the tasks that they serve, the parameters that hold
    them; a pinned group says why nothing of it may be cut. Needs no trained weights.

    Example:
      cutjax trace
      cutjax trace --explain stem/kernel
      cutjax trace --source mymodel:job --json > graph.json
      cutjax trace --dot | dot -Tsvg > graph.svg

    Writes:
      nothing but its output
    """

    source: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """Instead of the reference: your function; it returns a `cutjax.source.Job`."""
    explain: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Explain one group or parameter (any unique ending of its name) instead."""
    json: bool = False
    """Print the graph as JSON."""
    dot: bool = False
    """Print who reads whom in the DOT language, for Graphviz."""


def run(args: Trace) -> None:
    """Traces and prints."""
    graph = _graph(args.source)
    if args.explain is not None:
        print(graph.explain(args.explain))
    elif args.json:
        from cutjax.cli.common import cost_record
        from cutjax.graph_json import graph_to_json

        record = {"cost": cost_record(graph.cost()), **graph_to_json(graph)}
        print(json.dumps(record, indent=1))
    else:
        print(graph.to_dot() if args.dot else graph)


def _graph(source: str | None) -> Any:
    import jax

    from cutjax.cli.parent import untrained
    from cutjax.models import init
    from cutjax.models.reference import reference
    from cutjax.source import from_source, graph_of

    if source is not None:
        job = from_source(source)
        return graph_of(job.apply, job.params, job.dataset)
    # The model is the same whatever the number of scenes: make few.
    few = dict.fromkeys(("train", "calibration", "validation", "test"), 1)
    apply, _, data = untrained({"seed": 0, "sizes": few})
    params = jax.eval_shape(lambda: init(reference(data), data.calibration.x))
    return graph_of(apply, params, data)
