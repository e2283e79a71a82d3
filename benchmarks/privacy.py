"""What leak loss and noise keep in, and what they cost: a table, and a plot, of finished sweeps.

    python main.py -m experiment=binarized_split sweep=leak name=leak
    python main.py -m experiment=binarized_split sweep=noise name=noise
    python -m benchmarks.privacy runs/leak/<time> runs/noise/<time> [--plot x.html x.png]

One panel a sweep; over seeds, the mean and, in the plot, the deviation. Attack: squared error of
the decoder as a share of what the mean input has, 1 where what crosses says nothing.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tracking
from benchmarks.picture import write
from tracking.figure import COLORS, plain

if TYPE_CHECKING:
    import pandas as pd

KEYS = {"privacy.dcor_weight": "weight of the leak loss", "privacy.epsilon": "ε of the noise"}
MEASURES = {
    "accuracy": "accuracy", "dcor_max": "dCor, largest channel", "dcor_mean": "dCor, mean",
    "attack": "attack: share of error left",
}  # fmt: skip


def read(sweep: Path) -> tuple[str, "pd.DataFrame"]:
    """Return the key that a sweep varies, and mean and deviation of each measure by its values.

    Raises:
        ValueError: it varies none or both of the keys, or no run of it measured leakage.
    """
    runs, _ = tracking.load(sweep)
    varied = [key for key in KEYS if key in runs and runs[key].nunique(dropna=False) > 1]
    if len(varied) != 1 or "final_attack_mse" not in runs:
        raise ValueError(f"{sweep}: takes finished runs of one of {', '.join(KEYS)}")
    (key,) = varied
    runs["final_attack"] = runs["final_attack_mse"] / runs["final_attack_mean_mse"]
    columns = [f"final_{name}" for name in MEASURES]
    found = runs.groupby(key, dropna=False)[columns].agg(["mean", "std", "count"])
    if key == "privacy.epsilon":  # from none to much
        found = found.iloc[::-1]
        found = found.loc[sorted(found.index, key=lambda e: (e == e, -e))]
    return key, found


def label(value: float) -> str:
    """A value of a key; no noise has none."""
    return "none" if value != value else f"{value:g}"


def table(key: str, found: "pd.DataFrame") -> str:
    """Markdown."""
    lines = [f"| {key} | seeds | " + " | ".join(MEASURES.values()) + " |"]
    lines.append("|---" * (len(MEASURES) + 2) + "|")
    for value, row in found.iterrows():
        means = [row[f"final_{name}"]["mean"] for name in MEASURES]
        cells = [f"{100 * means[0]:.2f}", *(f"{mean:.3f}" for mean in means[1:])]
        count = int(row["final_accuracy"]["count"])
        lines.append(f"| {label(value)} | {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(sweeps: Sequence[tuple[str, "pd.DataFrame"]]) -> Any:
    """A panel for each sweep."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    drawn = make_subplots(cols=len(sweeps), shared_yaxes=True, horizontal_spacing=0.06)
    for column, (key, found) in enumerate(sweeps, start=1):
        for color, (name, title) in zip(COLORS, MEASURES.items(), strict=True):
            measure = found[f"final_{name}"]
            line = Scatter(
                x=[label(value) for value in found.index], y=measure["mean"].tolist(), name=title,
                error_y={"array": measure["std"].fillna(0).tolist(), "thickness": 1, "width": 3},
                mode="lines+markers", line={"color": color}, legendgroup=name,
                showlegend=column == 1,
            )  # fmt: skip
            drawn.add_trace(line, row=1, col=column)
        drawn.update_xaxes(title=KEYS[key], type="category", row=1, col=column)
    drawn.update_yaxes(range=[0, 1.02])
    plain(drawn, "What crosses a binarized cut: accuracy, and what it says about the input")
    return drawn


def main(argv: Sequence[str] | None = None) -> None:
    """Print, and draw where asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweeps", type=Path, nargs="+")
    parser.add_argument("--plot", type=Path, nargs="+", default=[], help="x.html, x.png")
    chosen = parser.parse_args(argv)
    try:
        sweeps = [read(sweep) for sweep in chosen.sweeps]
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print("\n\n".join(table(key, found) for key, found in sweeps))
    for path in chosen.plot:
        write(path, figure(sweeps))


if __name__ == "__main__":
    main()
