"""What a run leaves behind: records, the sinks they go to, and comparisons of several runs."""

from tracking.frames import Frames, load

__all__ = ["Frames", "load"]
