"""Backbones, one file each, and operations on any network: cutting, exits, cost. Pure torch."""
