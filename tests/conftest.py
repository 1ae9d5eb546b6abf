"""Every annotation of cutjax is checked while tests run; XLA is kept from crashing."""

import os
import sys

# jaxlib 0.10.2 can crash on a broadcast-multiply-reduce; must precede `import jax`.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=-reduce")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

if "--benchmark-enable" not in sys.argv:  # checking takes longer than tracing
    _hook = install_import_hook("cutjax", "beartype.beartype")
