"""Annotations of cutjax are checked while tests run; XLA is kept from crashing."""

import os
import sys
from importlib import metadata
from pathlib import Path

# jaxlib 0.10.2 can crash on a broadcast-multiply-reduce; must precede `import jax`.
FLAGS = ["--xla_cpu_experimental_ynn_fusion_type="]
if "--benchmark-enable" not in sys.argv:  # compiling takes longer than running here
    FLAGS.append("--xla_backend_optimization_level=0")
    FLAGS.append("--xla_llvm_disable_expensive_passes=true")
    if metadata.version("jaxlib").startswith("0.10"):  # 0.12 knows no longer all
        FLAGS.append("--xla_cpu_use_fusion_emitters=false")
        FLAGS.append("--xla_cpu_parallel_codegen_split_count=1")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

MANY = {"dims", "resize"}
"""No parameters go through these, but very many calls."""


def checked() -> list[str]:
    """The modules that state shapes of arrays; for the others pyright is enough."""
    root = Path(__file__).parent.parent
    paths = [p for p in root.glob("cutjax/**/*.py") if p.stem not in MANY]
    stating = [p for p in paths if "\nfrom jaxtyping import" in p.read_text()]
    return [".".join(p.relative_to(root).with_suffix("").parts) for p in stating]


if "--benchmark-enable" not in sys.argv:  # checking takes longer than tracing
    from jaxtyping import install_import_hook

    _hook = install_import_hook(checked(), "beartype.beartype")
