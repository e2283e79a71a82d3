"""What clients do: local training, and training over a cut."""
