"""What a model may cost, and how its widths may fall."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cutjax.cost import RESOURCES, SCOPES, key_of
from cutjax.errors import BudgetError, suggest

Amount = float | int | Mapping[str, float | int]


@dataclass(frozen=True)
class Budget:
    """Limits on what is left, and rules for the widths.

    `params`, `flops`, `bytes`, `activations` (see `Cost`): a float of at most 1.0 is a
    fraction of the full model for the chosen tasks, an int an absolute number. Or a
    mapping from scopes to such: "all", "trunk" (what serves several tasks of the
    parent), "heads" (the rest), or a task (its own head); a fraction is one of the
    scope. All given limits must hold.

    `multiple`: kept widths are multiples of it, or whole. `floor`: the least channels a
    group keeps; with 0 a group may also go whole, where every chosen task has another
    path from the inputs. `max_ratio`: the largest share of a group that may go while it
    stays. Both may be mappings from patterns of group names (the first that matches
    counts) to numbers.

    Example:
        >>> Budget(params={"trunk": 0.2, "heads": 0.5}, floor={"head*": 4}).multiple
        1
    """

    params: Amount | None = None
    flops: Amount | None = None
    bytes: Amount | None = None
    multiple: int = 1
    floor: int | Mapping[str, int] = 1
    max_ratio: float | Mapping[str, float] = 0.95
    activations: Amount | None = None

    def __post_init__(self) -> None:
        if not self.asked:
            raise BudgetError(f"an empty budget; give one of {', '.join(RESOURCES)}")
        for name, value in self.asked.items():
            fraction = isinstance(value, float)
            if not value > 0 or (fraction and value > 1.0):
                raise BudgetError(
                    f"{name}={value!r}: a fraction is a float in (0, 1], an absolute "
                    f"number an int above 0"
                )
        floors, ratios = _values(self.floor), _values(self.max_ratio)
        good = all(f >= 0 for f in floors) and all(0 <= r <= 1 for r in ratios)
        if self.multiple < 1 or not good:
            raise BudgetError(
                f"multiple={self.multiple} is at least 1, floor={self.floor} at least "
                f"0, max_ratio={self.max_ratio} lies in [0, 1]"
            )

    @property
    def asked(self) -> dict[str, float | int]:
        """What was asked, by the names of `cost.key_of`: `params`, `params[trunk]`."""
        out = {}
        for resource in RESOURCES:
            value = getattr(self, resource)
            scoped = value if isinstance(value, Mapping) else {"all": value}
            out |= {
                key_of(resource, scope): amount
                for scope, amount in scoped.items()
                if amount is not None
            }
        return out

    def check(self, graph: Any, tasks: tuple[str, ...]) -> None:
        """Check that scopes and patterns mean something in this graph.

        Raises:
            BudgetError: an unknown scope, one with nothing in it, a pattern that
                matches no group, or activations of a graph that does not know them.
        """
        if self.activations is not None and graph.activations is None:
            raise BudgetError(
                "this graph was stored before activations were counted; trace the "
                "function again: graph = cutjax.trace(apply, params, *inputs)"
            )
        floors = _values(self.floor)
        if graph.flow is None and not all(floors):
            raise BudgetError(
                "floor=0 needs to know what reaches the outputs, and this graph was "
                "stored before that was kept; trace the function again: "
                "graph = cutjax.trace(apply, params, *inputs)"
            )
        known = {*SCOPES, *(tasks if len(graph.tasks) > 1 else ())}
        for resource in RESOURCES:
            value = getattr(self, resource)
            for scope in value if isinstance(value, Mapping) else ():
                if scope not in known:
                    raise BudgetError(
                        f"{resource} has no scope {scope!r} for the tasks "
                        f"{', '.join(tasks)}; {suggest(scope, sorted(known))}"
                    )
        names = [g.name for g in graph.free]
        for rule in ("floor", "max_ratio"):
            value = getattr(self, rule)
            for pattern in value if isinstance(value, Mapping) else ():
                if not fnmatch.filter(names, pattern):
                    raise BudgetError(
                        f"{rule}={{{pattern!r}: ...}} matches no free group; "
                        f"{suggest(pattern, names)}"
                    )

    def limits(self, full: Mapping[str, int]) -> dict[str, float]:
        """Absolute limits, given what the full model costs (`cost.amounts`)."""
        return {
            key: value * full[key] if isinstance(value, float) else float(value)
            for key, value in self.asked.items()
        }

    def rules(self, name: str = "") -> tuple[int, float]:
        """The floor and the largest ratio of a group."""
        return _of(self.floor, name, 1), _of(self.max_ratio, name, 0.95)

    def least(self, size: int, name: str = "") -> int:
        """The least width that a group of this size may have, and stay."""
        floor, ratio = self.rules(name)
        least = max(floor, size - int(ratio * size + 1e-9), 1)
        return min(size, -(-least // self.multiple) * self.multiple)

    def widths(self, size: int, name: str = "") -> list[int]:
        """The widths that a group of this size may have, falling; 0 is the last."""
        least = self.least(size, name)
        top = size // self.multiple * self.multiple
        rounded = range(top, least - 1, -self.multiple)
        gone = [0] if self.rules(name)[0] == 0 and size else []
        return [size, *(w for w in rounded if w < size), *gone]


def _values(rule: Any) -> list[Any]:
    return list(rule.values()) if isinstance(rule, Mapping) else [rule]


def _of(rule: Any, name: str, default: Any) -> Any:
    """The number that a rule gives a group."""
    if not isinstance(rule, Mapping):
        return rule
    found = (v for pattern, v in rule.items() if fnmatch.fnmatchcase(name, pattern))
    return next(found, default)
