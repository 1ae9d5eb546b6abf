"""What a model may cost, and how its widths may fall."""

from dataclasses import dataclass

from cutjax.cost import Cost
from cutjax.errors import BudgetError

RESOURCES = ("params", "flops", "bytes")


@dataclass(frozen=True)
class Budget:
    """Limits on what is left, and rules for the widths.

    `params`, `flops`, `bytes`: a float of at most 1.0 is a fraction of the full model
    for the chosen tasks, an int an absolute number; all given limits must hold.
    `multiple`: kept widths are multiples of it, or whole. `floor`: the least channels a
    group keeps. `max_ratio`: the largest share of a group that may go.

    Example:
        >>> Budget(params=0.32, multiple=8).params
        0.32
    """

    params: float | int | None = None
    flops: float | int | None = None
    bytes: float | int | None = None
    multiple: int = 1
    floor: int = 1
    max_ratio: float = 0.95

    def __post_init__(self) -> None:
        given = {r: getattr(self, r) for r in RESOURCES if getattr(self, r) is not None}
        if not given:
            raise BudgetError(f"an empty budget; give one of {', '.join(RESOURCES)}")
        for name, value in given.items():
            fraction = isinstance(value, float)
            if value <= 0 or (fraction and value > 1.0):
                raise BudgetError(
                    f"{name}={value!r}: a fraction is a float in (0, 1], an absolute "
                    f"number an int above 0"
                )
        if self.multiple < 1 or self.floor < 1 or not 0 <= self.max_ratio <= 1:
            raise BudgetError(
                f"multiple={self.multiple} and floor={self.floor} are at least 1, "
                f"max_ratio={self.max_ratio} lies in [0, 1]"
            )

    def limits(self, full: Cost) -> dict[str, float]:
        """Absolute limits, given what the full model costs."""
        out = {}
        for name in RESOURCES:
            value = getattr(self, name)
            if value is not None:
                whole = getattr(full, name)
                out[name] = value * whole if isinstance(value, float) else float(value)
        return out

    def least(self, size: int) -> int:
        """The least width of a group of this size."""
        least = max(self.floor, size - int(self.max_ratio * size + 1e-9), 1)
        return min(size, -(-least // self.multiple) * self.multiple)

    def widths(self, size: int) -> list[int]:
        """The widths that a group of this size may have, falling."""
        least = self.least(size)
        top = size // self.multiple * self.multiple
        rounded = range(top, least - 1, -self.multiple)
        return [size, *(w for w in rounded if w < size)]
