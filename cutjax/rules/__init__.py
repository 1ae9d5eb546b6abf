"""Rules of primitives, in families; importing this package fills the table."""

from cutjax.rules import (
    contraction as contraction,
)
from cutjax.rules import (
    control as control,
)
from cutjax.rules import (
    elementwise as elementwise,
)
from cutjax.rules import (
    indexing as indexing,
)
from cutjax.rules import (
    movement as movement,
)
from cutjax.rules import (
    reduction as reduction,
)
from cutjax.rules.base import RULES as RULES
