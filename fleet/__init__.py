"""Who takes part in a round, and what a round would cost on real devices."""
