"""Two networks of disjoint classes as one: see scripts/merges."""
