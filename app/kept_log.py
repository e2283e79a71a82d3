"""What is said while jobs are checked, before Hydra opens the log file of the one that runs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class KeptLog(logging.Handler):
    """Keeps what informs; what warns is shown at once, as without any handler."""

    def __init__(self) -> None:
        super().__init__()
        self._records = list[logging.LogRecord]()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, or show it."""
        if record.levelno <= logging.INFO:
            self._records.append(record)
        elif logging.root.handlers == [self] and logging.lastResort is not None:
            logging.lastResort.handle(record)

    @contextmanager
    def said(self) -> Iterator[None]:
        """Say what was kept where log lines go by now, and within not once more."""
        records, self._records = self._records, []
        for record in records:
            logging.getLogger(record.name).handle(record)
        lines = {record.getMessage() for record in records}

        def is_new(record: logging.LogRecord) -> bool:
            return record.levelno > logging.INFO or record.getMessage() not in lines

        handlers = list(logging.root.handlers)
        for handler in handlers:
            handler.addFilter(is_new)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(is_new)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what is said within."""
        level = logging.root.level
        logging.root.addHandler(self)
        logging.root.setLevel(min(level, logging.INFO))
        try:
            yield
        finally:
            logging.root.setLevel(level)
            logging.root.removeHandler(self)
