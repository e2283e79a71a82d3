"""Where what is prepared once per machine lies."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where prepared tensors lie: ``$XDG_CACHE_HOME/cutbit``, by default ~/.cache/cutbit."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cutbit"
