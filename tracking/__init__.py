"""The results of a run: records, sinks, and reports that compare several runs."""

from tracking.frames import Frames, columns, load, load_clients

__all__ = ["Frames", "columns", "load", "load_clients"]
