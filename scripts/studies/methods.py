"""What is compared: every method is five names, and the grids are tables of methods."""

from typing import NamedTuple


class Method(NamedTuple):
    """A way to choose channels.

    `criterion`: a name of `cutjax.criteria`. `normalize`: of `cutjax.normalize`.
    `fuse`: of `cutjax.fuse`. `allocate`: of `cutjax.allocate`. `compensate`: refit the
    readers before fine-tuning. `fresh`: only the widths are kept, weights are new.
    """

    criterion: str
    normalize: str = "none"
    fuse: str = "mean"
    allocate: str = "greedy"
    compensate: bool = False
    fresh: bool = False

    @property
    def name(self) -> str:
        """The names that are not the default ones, joined."""
        plain = Method(self.criterion)
        parts = [self.criterion]
        for field in ("normalize", "fuse", "allocate"):
            if getattr(self, field) != getattr(plain, field):
                parts.append(getattr(self, field))
        extra = ["compensated"] * self.compensate + ["new weights"] * self.fresh
        return "+".join(parts + extra)


BUDGETS = (0.5, 0.32, 0.2, 0.1, 0.05, 0.02, 0.01)
SEEDS = (0, 1, 2)
IMAGES = 600  # of the test images, for what is evaluated at full size

CRITERIA = (
    *("joint", "gram", "taylor", "taylor_squared", "taylor_signed", "fisher"),
    *("cut", "snip", "grasp", "hessian", "l1", "l2", "linf", "bn_scale", "lamp"),
    *("fpgm", "mean_activation", "zero_rate", "wanda", "mutual_information"),
    *("cosprune", "random", "reconstruction"),
)
OPTIONS = {"hessian": {"samples": 2}}
"""The exact diagonal takes a product per channel, hours on these networks."""

FUSIONS = ("mean", "union", "majority", "intersection", "maximum", "minimum")
FUSIONS += ("geometric", "worst_case")
NORMALIZERS = ("none", "mean", "largest", "total", "length", "standard", "isomorphic")
ALLOCATORS = ("greedy", "threshold", "uniform", "isomorphic", "nested")

DEFAULT = Method("joint", compensate=True)
BASELINES = {
    "random": Method("random", allocate="uniform"),
    "uniform": Method("l1", allocate="uniform"),
    "l1": Method("l1"),
    "snip": Method("snip"),
    "disparse": Method("snip", fuse="union", allocate="threshold"),
    "plain cut": Method("cut", fuse="majority", allocate="threshold"),
    "taylor": Method("taylor"),
}
"""What the default has to beat. Random channels in uniform widths: greedy widths by
random scores are worse still."""

CONTROL = DEFAULT._replace(compensate=False, fresh=True)

COMPENSATED = tuple(
    Method(name, compensate=True) for name in ("joint", "taylor", "fisher", "snip")
) + tuple(
    BASELINES[name]._replace(compensate=True)
    for name in ("random", "uniform", "l1", "disparse", "plain cut")
)

SUBSETS = {
    "set_cards": (("color",), ("color", "shape")),
    "morpho": (("slant",), ("digit", "slant")),
    "digits": (("larger",), ("left", "larger")),
}
"""One task and a pair that some stages use; all single tasks and all together are
added where a stage asks for them."""

CUT_AT = {
    "set_cards": (0.2, 0.1),
    "morpho": (0.5, 0.32),
    "digits": (0.32, 0.2),
}
"""Two budgets where channels that are only cut leave something to compare."""

AT_STAKE = {
    "set_cards": (0.02, 0.01),
    "morpho": (0.1, 0.05),
    "digits": (0.1, 0.05),
}
"""Two budgets where the parent's accuracy is at stake even after fine-tuning; chosen on
validation data."""


def label(method: Method) -> str:
    """How the page calls a method."""
    if method == DEFAULT:
        return "**default** (joint, compensated)"
    if method == CONTROL:
        return "new weights in the default's widths"
    for name, baseline in BASELINES.items():
        if method == baseline:
            return name
        if method == baseline._replace(compensate=True):
            return f"{name}, compensated"
    return method.name.replace("+", ", ")
