"""The study: which criterion, fusion and allocation keep the most, on real data."""
