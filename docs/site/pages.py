"""The site's pages: the repository's own, where they lie, and one page of API for each package.

A hook of MkDocs. Pages keep their paths, so that their links work on the site as in the repository.
What they link to and the site does not hold (code, examples) stays as text.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "runs/README.md")
FOLDERS = ("docs/*.md", "docs/*.png", "docs/*.svg", "strategies/*.md")
# Modules whose public names are the API, by page.
API = {
    "strategies": [
        "strategies.contract", "strategies.messages", "strategies.server.method",
        "strategies.server.loop", "strategies.server.schedules", "strategies.server.buffered",
        "strategies.server.schedule_settings", "strategies.server.aggregation",
        "strategies.server.wires", "strategies.client.training", "strategies.client.simulated",
        "strategies.fedavg", "strategies.oqfl", "strategies.split", "strategies.splitfed_v1",
        "strategies.splitfed_v2", "strategies.splitfed_v3", "strategies.ushaped",
        "strategies.binarized_split", "strategies.deprune", "strategies.prune",
        "strategies.hierarchical",
    ],
    "quant": [
        "quant.functional", "quant.quantizer", "quant.layers", "quant.settings", "quant.codec",
        "quant.packet", "quant.link", "quant.packing", "quant.binary", "quant.survey",
        "quant.export", "quant.onnx_export",
    ],
    "fleet": [
        "fleet.work", "fleet.phases", "fleet.clock", "fleet.plan", "fleet.flights",
        "fleet.service", "fleet.selection", "fleet.devices", "fleet.population",
        "fleet.availability", "fleet.traces", "fleet.cost",
    ],
    "models": [
        "models.cut_points", "models.split", "models.cost", "models.objective", "models.inputs",
        "models.metrics",
    ],
}  # fmt: skip
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages; called by MkDocs."""
    paths = [ROOT / name for name in PAGES]
    paths += [path for pattern in FOLDERS for path in sorted(ROOT.glob(pattern))]
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    for name, modules in API.items():
        text = f"# {name}\n\n" + "".join(f"::: {module}\n\n" for module in modules)
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Leave the text of links to what the site does not hold; called by MkDocs."""
    folder = Path(page.file.src_uri).parent

    def kept(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        there = (ROOT / folder / target).resolve()
        name = there.relative_to(ROOT).as_posix() if there.is_relative_to(ROOT) else ""
        return match[0] if files.get_file_from_path(name) else text

    return LINK.sub(kept, markdown)
