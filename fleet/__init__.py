"""Which clients take part in a round, and what it would cost on real devices."""
