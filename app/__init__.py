"""Everything that knows Flower's runtime, Hydra or Ray."""
