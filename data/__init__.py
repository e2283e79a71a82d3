"""Data sources, one file each, and how they are divided among clients."""
