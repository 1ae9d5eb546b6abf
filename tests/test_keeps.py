"""Any keep at all: hypothesis draws them, for every specimen net.

One per net in the ordinary run, where the laws draw their own as well;
`HYPOTHESIS_EXAMPLES=50 pytest tests/test_keeps.py` draws fifty.
"""

import json
import os
from pathlib import Path
from typing import Any

import laws
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from laws import CJ
from laws.tools import graph_of
from nets import NETS
from nets.turns import by_turns

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "1"))
SHARES = Path(__file__).parent / "golden_shares.json"


def keeps(graph: Any) -> st.SearchStrategy[dict[str, np.ndarray]]:
    """Any set of channels of any free groups, of each group at least one."""

    def some(size: int) -> st.SearchStrategy[np.ndarray]:
        drawn = st.lists(st.booleans(), min_size=size, max_size=size)
        return drawn.filter(any).map(lambda bits: np.array(bits))

    return st.fixed_dictionaries({g.name: some(g.size) for g in laws.free(graph)})


@pytest.mark.parametrize("name", by_turns(NETS, 8))
def test_any_keep(name: str) -> None:
    net = NETS[name]()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=EXAMPLES < 10,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(keep=keeps(graph_of(CJ, net)))
    def holds(keep: dict[str, np.ndarray]) -> None:
        laws.check_any_keep(CJ, net, keep)

    holds()


@pytest.mark.parametrize("name", list(NETS))
def test_no_more_is_pinned_than_was(name: str) -> None:
    """`python tests/golden_shares.py` writes the file anew, to be read by a person."""
    golden = json.loads(SHARES.read_text())
    assert round(graph_of(CJ, NETS[name]()).prunable, 4) == golden[name]


def test_no_golden_share_is_left_over() -> None:
    assert set(json.loads(SHARES.read_text())) == set(NETS)
