"""`python tests/golden_shares.py`: the share of each specimen that may be cut.

Writes golden_shares.json and prints what changed. A share that fell means that a rule
pins more than it did: do not commit it without a reason.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")

from nets import NETS

import cutjax

PATH = Path(__file__).parent / "golden_shares.json"


def main() -> None:
    """Trace every specimen."""
    before = json.loads(PATH.read_text()) if PATH.exists() else {}
    after = {}
    for name, build in sorted(NETS.items()):
        net = build()
        graph = cutjax.trace(net.apply, net.params, *net.inputs)
        after[name] = round(graph.prunable, 4)
        if before.get(name) != after[name]:
            print(f"{name:24} {before.get(name)} -> {after[name]}")
    PATH.write_text(json.dumps(after, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
