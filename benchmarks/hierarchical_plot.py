"""The curve of simulated training time over bit rates, as a page and as a picture.

python -m benchmarks.hierarchical --plot hierarchical.html docs/hierarchical.png
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tracking.figure import COLORS, plain

# Shares of a baseline's time, by network, codec and baseline: one for each rate.
Curves = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
DASHES = {"fp32": "solid", "int8": "dot"}
TICKS = (0.05, 0.1, 0.2, 0.39, 0.71, 1.0, 2.0, 5.0, 10.0, 20.0)


def figure(rates: Sequence[float], curves: Curves, paper: Mapping[str, float], title: str) -> Any:
    """A panel for each network, a colour for each baseline, a dash for each codec.

    Args:
        rates: Mbit/s.
        curves: what to draw; below 1 hierarchical training is faster.
        paper: the share of time that the paper saves, by network: a grey line.
        title: stands above.
    """
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    drawn = make_subplots(cols=len(curves), shared_yaxes=True, subplot_titles=list(curves),
                          horizontal_spacing=0.06)  # fmt: skip
    for column, (network, by_codec) in enumerate(curves.items(), start=1):
        for codec, baselines in by_codec.items():
            for color, (name, values) in zip(COLORS, baselines.items(), strict=True):
                line = Scatter(
                    x=list(rates), y=list(values), mode="lines", name=f"{name} (z as {codec})",
                    legendgroup=f"{name} {codec}", showlegend=column == 1,
                    line={"color": color, "dash": DASHES[codec], "width": 2},
                    hovertemplate="%{x:.3g} Mbit/s: %{y:.3g}",
                )  # fmt: skip
                drawn.add_trace(line, row=1, col=column)
        left = 1 - paper[network]
        drawn.add_hline(y=left, line={"color": "#888", "dash": "dash", "width": 1}, row=1,
                        col=column)  # fmt: skip
        drawn.add_annotation(text=f"the paper's {paper[network]:.0%}", showarrow=False,
                             x=math.log10(rates[-1]) - 0.05, y=math.log10(left), xanchor="right",
                             yanchor="top", font={"size": 11, "color": "#666"}, row=1,
                             col=column)  # fmt: skip
        drawn.add_hline(y=1, line={"color": "#333", "width": 1}, row=1, col=column)
    drawn.update_xaxes(type="log", title="uplink, Mbit/s", dtick=1, tickformat="~g")
    labels = [f"{tick:g}×" if tick >= 1 else f"{tick - 1:+.0%}" for tick in TICKS]
    labels = ["the same" if tick == 1 else label for tick, label in zip(TICKS, labels, strict=True)]
    drawn.update_yaxes(type="log", tickvals=list(TICKS), ticktext=labels,
                       range=[math.log10(0.05), math.log10(30)])  # fmt: skip
    drawn.update_yaxes(title="time against the baseline", col=1)
    plain(drawn, title)
    return drawn
