"""The results of a run: records, sinks, and reports that compare several runs."""

from tracking.frames import Frames, load

__all__ = ["Frames", "load"]
