"""Files that are there whole or not at all, however a process ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it takes the place of ``path`` once it is written.

    What an error leaves behind is called ``path`` with ``.part`` at its end.
    """
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)  # a link of this name may lead anywhere
    yield part
    part.replace(path)
