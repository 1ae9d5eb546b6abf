"""Rules of primitives, in families; importing this package fills the table."""

from cutjax.rules import (
    contraction as contraction,
    control as control,
    elementwise as elementwise,
    indexing as indexing,
    movement as movement,
    opaque as opaque,
    parallel as parallel,
    reduction as reduction,
)
from cutjax.rules.base import RULES as RULES, register_rule as register_rule
from cutjax.rules.elementwise import same_axes as same_axes
from cutjax.rules.opaque import pinned as pinned
