"""A Markdown table, as docs/RESULTS.md has them."""

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> str:
    """Return a table, under its title where it has one."""
    lines = [f"\n{title}\n"] if title else []
    lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])
