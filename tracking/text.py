"""Other people's text on its way out: names, errors, labels, file names, values of settings.

They can hold anything. What a terminal would obey (escapes, carriage returns, overrides of the
direction of writing) is written as it would be in Python, ``\\x1b``; what a spreadsheet would
compute and what Markdown would mark up is marked as text.
"""

import io
import logging
import re
import sys
from collections.abc import Iterable
from unicodedata import category

LONGEST = 1000
"""Characters of a line, of which the middle is left out: a message begins with the key and ends
with what is accepted."""
LONGEST_LOG = 20_000

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def line(text: object, most: int | None = LONGEST) -> str:
    """Return one line that any terminal can be given.

    Args:
        text: whatever it is, as ``str`` says it.
        most: characters that are kept; None keeps all.
    """
    return shortened(escaped(" ".join(str(text).split("\n"))), most)


def lines(text: str, most: int | None = LONGEST_LOG) -> str:
    """Return the same of several lines, such as a traceback."""
    return shortened("\n".join(map(escaped, text.split("\n"))), most)


def escaped(text: str) -> str:
    """Return what is no printable character as its escape in Python."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or category(c) == "Zs" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def shortened(text: str, most: int | None) -> str:
    """Return the text without its middle where it is longer than ``most`` characters."""
    if most is None or len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end]} … {text[len(text) - end :]}"


def last_message(traceback: str) -> str:
    """Return what the last error of a traceback says, all lines of it, its kind without module.

    >>> last_message("Traceback (most recent call last):\\n  File x\\nValueError: a\\n  and b")
    'ValueError: a\\n  and b'
    """
    found = traceback.strip().split("\n")
    begins = [number for number, text in enumerate(found) if text.startswith("Traceback")]
    behind = found[begins[-1] + 1 :] if begins else found
    while begins and behind and (not behind[0].strip() or behind[0][0].isspace()):
        del behind[0]  # the calls, which are indented
    return re.sub(r"^(\w+\.)+(?=\w+:)", "", "\n".join(behind or found[-1:]).strip())


def cell(value: object) -> object:
    """Return a value for a table of comma separated values: text that no spreadsheet computes.

    Numbers stay numbers, also where they are written as text.
    """
    if not isinstance(value, str):
        return value
    text = lines(value, None)
    if not value.lstrip(" ").startswith(_FORMULA) or _is_number(text):
        return text
    return "'" + text


def markdown(text: object) -> str:
    """Return text for a cell of a table in Markdown: no markup, no HTML, no end of the cell."""
    marked = re.sub(r"[\\`*|~$\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line(text))
    return re.sub("[&<>]", lambda found: _ENTITIES[found[0]], marked)


def table(headings: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Return a table in Markdown, without the last line's end."""
    heads = [markdown(heading) for heading in headings]
    found = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*found, *("| " + " | ".join(map(markdown, row)) + " |" for row in rows)])


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) is not None


def tolerant() -> None:
    """Have standard output replace what its encoding lacks; standard error does so by itself."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and out.errors in ("strict", "surrogateescape"):
        out.reconfigure(errors="replace")


class PlainFormatter(logging.Formatter):
    """Formats records of a log, tracebacks included, as `lines` does."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's lines."""
        return lines(super().format(record))
