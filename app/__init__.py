"""Everything that depends on Flower's runtime, Hydra or Ray."""
