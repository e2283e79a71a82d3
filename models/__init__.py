"""Backbones, one file each, and what is done to any network: cutting, exits, cost. Pure torch."""
