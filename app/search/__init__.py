"""The search for good settings, `sweep=search`: trials that are jobs, drawn by Optuna."""
