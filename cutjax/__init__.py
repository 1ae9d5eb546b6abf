"""cutjax: pruning as a JAX transformation."""
