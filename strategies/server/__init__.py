"""The loop that runs any method, and its parts."""
