"""Plotly figures as files that need no network."""

from pathlib import Path
from typing import Any

from tracking.files import whole

FONT = {"family": "system-ui, sans-serif", "size": 13}
COLORS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea")


def plain(figure: Any, title: str) -> None:
    """Give a figure the look that all have: white, a title on the left, the legend below."""
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "x": 0.01, "font": {"size": 15}},
        font=FONT,
        legend={"orientation": "h", "yanchor": "top", "y": -0.16, "x": 0},
        margin={"l": 60, "r": 20, "t": 70, "b": 60},
    )


def write_figure(path: Path, figure: Any) -> None:
    """Write a page that holds the figure and plotly's script; the same figure, the same bytes."""
    page = figure.to_html(include_plotlyjs=True, div_id="figure", default_height="96vh")
    with whole(path) as part:
        part.write_text(page, encoding="utf-8")
