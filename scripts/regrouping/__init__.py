"""Single-task networks as one, for every subset of tasks: see scripts/regroup."""
