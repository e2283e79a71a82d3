"""Commands beside main.py; `python -m app.<command>` runs each."""
