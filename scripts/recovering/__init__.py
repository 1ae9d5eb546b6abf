"""What every step of recovery brings, on real data."""
