"""The laws, as plain functions of the library under test, a net and a seed.

Each takes the functions it judges from the namespace `cj`, so that a saboteur (see
saboteurs.py) can hand in a broken one; each fails with an AssertionError.
"""

from .compose import (
    check_compiles_once,
    check_grad,
    check_inner_grad,
    check_other_batch,
    check_program,
    check_second_cut,
    check_train,
    check_vmap,
)
from .cutting import (
    check_any_keep,
    check_cost,
    check_full_keep,
    check_mask,
    check_shrink_equals_mask,
    check_shrink_equals_narrow,
    check_tasks,
)
from .gates import check_gate_gradient, check_gate_scale, check_gates
from .graph import (
    check_graph_stable,
    check_groups,
    check_members,
    check_permutation,
)
from .library import CJ
from .tools import free

__all__ = [
    "CJ",
    "check_any_keep",
    "check_compiles_once",
    "check_cost",
    "check_full_keep",
    "check_gate_gradient",
    "check_gate_scale",
    "check_gates",
    "check_grad",
    "check_graph_stable",
    "check_groups",
    "check_inner_grad",
    "check_mask",
    "check_members",
    "check_other_batch",
    "check_permutation",
    "check_program",
    "check_second_cut",
    "check_shrink_equals_mask",
    "check_shrink_equals_narrow",
    "check_tasks",
    "check_train",
    "check_vmap",
    "free",
]
