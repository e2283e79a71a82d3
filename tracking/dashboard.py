"""A workspace and a report in wandb for the runs of a project, or of one of its sweeps.

python -m tracking.dashboard entity/project                       all of its runs
python -m tracking.dashboard entity/project --sweep digits/<time> those of a sweep

Both are made anew by each call. Panels read what `tracking.wandb_sink` logs.
"""

import argparse
import importlib.util
import re
import sys
from collections.abc import Sequence
from typing import Any

from tracking.text import line, tolerant
from tracking.wandb_report import JOB_TYPE
from tracking.wandb_settings import missing_key

PACKAGE = "wandb_workspaces"
# Title of the axis, the metric, and whether its scale is logarithmic.
AXES = (
    ("rounds", "round", False),
    ("bytes up and down", "total_bytes", True),
    ("simulated hours", "total_sim_h", False),
    ("joules of all clients", "total_energy_j", False),
)
PRICES = (
    ("bytes up and down", "total_bytes"),
    ("simulated seconds", "total_sim_s"),
    ("joules of all clients", "total_energy_j"),
)
SETTINGS = (
    ("weight bits", "effective.weight_bits"),
    ("activation bits", "effective.act_bits"),
    ("cut", "effective.cut"),
    ("pruned share", "effective.ratio"),
)
CLIENTS = "clients/results"  # the table of clients


def sections() -> dict[str, list[Any]]:
    """Return panels by the title of their section."""
    import wandb_workspaces.reports.v2 as wr

    over = [
        wr.LinePlot(
            title=f"Accuracy over {title}", x=metric, y=["accuracy"], title_x=title,
            title_y="accuracy", log_x=is_log or None,
        )
        for title, metric, is_log in AXES
    ]  # fmt: skip
    costs = [
        wr.LinePlot(title="Loss", x="round", y=["loss", "train_loss"], title_x="rounds"),
        wr.LinePlot(title="Joules", x="round", y=["total_energy_j"], title_x="rounds"),
    ]
    fronts = [
        wr.ScatterPlot(
            title=f"Accuracy against {title}; the line is the best that costs no more",
            x=wr.SummaryMetric(metric), y=wr.SummaryMetric("final_accuracy"), log_x=True,
            running_ymax=True,
        )
        for title, metric in PRICES
    ]  # fmt: skip
    columns = [
        *(_flat()(wr.Config(key), display_name=title) for title, key in SETTINGS),
        *(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(metric), display_name=title, log=True)
          for title, metric in PRICES[:1]),
        wr.ParallelCoordinatesPlotColumn(
            wr.SummaryMetric("final_accuracy"), display_name="accuracy"
        ),
    ]  # fmt: skip
    clients = [
        wr.CustomChart(
            query={"summaryTable": {"tableKey": CLIENTS}}, chart_name="wandb/histogram/v0",
            chart_fields={"value": column}, chart_strings={"title": f"Clients: {column}"},
        )
        for column in ("last loss", "accuracy", "sim_s", "energy_j")
    ]  # fmt: skip
    over_rounds = wr.MediaBrowser(
        title="Clients over rounds", media_keys=["clients/loss", "clients/accuracy"]
    )
    return {
        "Accuracy": over,
        "Loss and energy": costs,
        "Pareto": fronts,
        "Settings": [wr.ParallelCoordinatesPlot(title="Bits, cut, ratio", columns=columns)],
        "Clients": [*clients, over_rounds],
    }


def _flat() -> type[Any]:
    """The class of a column of a configuration's key whose dots are part of its name.

    The package takes them for levels, and puts ``.value`` behind the first.
    """
    import wandb_workspaces.reports.v2 as wr

    class FlatColumn(wr.ParallelCoordinatesPlotColumn):  # type: ignore[misc]
        def _to_model(self) -> Any:
            model = super()._to_model()
            model.accessor = f"config:{self.metric.name}.value"
            return model

    return FlatColumn


def filters(sweep: str | None) -> list[Any]:
    """Return what the runs fulfil: of the sweep, if it is one, and not its report."""
    from wandb_workspaces import expr

    of_sweep = [expr.Metric("Group") == sweep] if sweep else []
    return [*of_sweep, expr.Metric("JobType") != JOB_TYPE]


def workspace(entity: str, project: str, sweep: str | None = None) -> Any:
    """Return the workspace, which is not saved yet."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=_title(sweep),
        sections=[
            ws.Section(name=name, panels=panels, is_open=True)
            for name, panels in sections().items()
        ],
        settings=ws.WorkspaceSettings(x_axis="round", max_runs=100),
        runset_settings=ws.RunsetSettings(filters=filters(sweep)),
    )


def report(entity: str, project: str, sweep: str | None = None) -> Any:
    """Return the report, which is not saved yet."""
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.TableOfContents()]
    for name, panels in sections().items():
        runs = wr.Runset(name=sweep or project, filters=filters(sweep))  # of the report's project
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(
        entity=entity, project=project, title=_title(sweep), blocks=blocks, width="fluid"
    )


def _title(sweep: str | None) -> str:
    """A title without slashes: it becomes a part of an address as it is."""
    return line(f"CutBit {sweep.replace('/', ' ')}" if sweep else "CutBit", 120)


def main(arguments: Sequence[str]) -> int:
    """Make both."""
    parser = argparse.ArgumentParser(
        "python -m tracking.dashboard", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("project", help="entity/project in wandb")
    parser.add_argument("--sweep", help="the group of a sweep, such as digits/2026-01-31_12-00-00")
    given = parser.parse_args(arguments)
    named = re.fullmatch(r"([^/\s]+)/([^/\s]+)", given.project)
    if named is None:
        return _refused(f"{given.project}: takes entity/project")
    if importlib.util.find_spec(PACKAGE) is None:
        return _refused("wandb-workspaces is not installed; pip install cutbit[dashboard]")
    host, reason = missing_key()
    if reason is not None:
        why = reason or f"no key for {host}"
        return _refused(f"{why}; set WANDB_API_KEY or run wandb login")
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    try:
        there = [one.name for one in wandb.Api().projects(named[1])]
        if named[2] not in there:  # a report would make it
            return _refused(f"{given.project}: no such project at {host}")
        for make in (workspace, report):
            make(named[1], named[2], given.sweep).save()  # says where it is
    except (wandb.Error, ValueError, RuntimeError, KeyError, TypeError, TimeoutError) as error:
        return _refused(f"{host}: {str(error) or type(error).__name__}")
    return 0


def _refused(text: str) -> int:
    sys.stderr.write(f"error: {line(text)}\n")
    return 1


if __name__ == "__main__":
    tolerant()
    sys.exit(main(sys.argv[1:]))
