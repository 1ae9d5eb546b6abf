"""Annotations of cutjax are checked while tests run; XLA is kept from crashing."""

import os
import sys
from importlib import metadata
from pathlib import Path

# jaxlib 0.10.2 can crash on a broadcast-multiply-reduce; must precede `import jax`.
FLAGS = ["--xla_cpu_experimental_ynn_fusion_type="]
if "--benchmark-enable" not in sys.argv:  # compiling takes longer than running here
    FLAGS.append("--xla_backend_optimization_level=0")
    if metadata.version("jaxlib").startswith("0.10"):  # 0.12 no longer knows it
        FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

SYMBOLIC = {"unify", "walk", "rules", "zeros", "proof", "naming", "liveness"}
"""No arrays go through these, but very many calls."""

if "--benchmark-enable" not in sys.argv:  # checking takes longer than tracing
    from jaxtyping import install_import_hook

    units = {p.stem for p in (Path(__file__).parent.parent / "cutjax").iterdir()}
    checked = [f"cutjax.{unit}" for unit in sorted(units - SYMBOLIC)]
    _hook = install_import_hook(checked, "beartype.beartype")
