"""Data sources, one file each, and their partitioning among clients."""
