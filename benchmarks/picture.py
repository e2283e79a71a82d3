"""A plotly figure as a page, or as a picture: the page as chromium draws it, through Playwright."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from tracking.figure import write_figure

SIZE = {"width": 1100, "height": 560}


def write(path: Path, drawn: Any) -> None:
    """Write the figure, as its suffix says.

    Raises:
        ValueError: it is neither .html nor .png.
        RuntimeError: there is no chromium to draw a .png.
    """
    if path.suffix == ".html":
        write_figure(path, drawn)
    elif path.suffix == ".png":
        _picture(path, drawn)
    else:
        raise ValueError(f"--plot {path}: takes names that end in .html or .png")


def _picture(path: Path, drawn: Any) -> None:
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise RuntimeError(f"--plot {path}: a .png needs chromium (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "figure.html"
        write_figure(page_file, drawn)
        options = ["--no-sandbox", "--disable-gpu"]
        window = playwright.chromium.launch(executable_path=browser, args=options)
        page = window.new_page(viewport=SIZE)  # type: ignore[arg-type]
        page.goto(page_file.as_uri())
        page.wait_for_selector("#figure .legend .traces")
        page.add_style_tag(content="body { margin: 0 } .modebar { display: none }")
        page.screenshot(path=path)
        window.close()
