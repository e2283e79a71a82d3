"""The picture of docs/ARCHITECTURE.md is the code's, and none of its arrows points up."""

import re
from xml.etree import ElementTree

from test_imports import FORBIDDEN, imported

from benchmarks import architecture

SVG = "{http://www.w3.org/2000/svg}"


def drawn(text: str) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Arrows of an SVG: who imports whom, and the corners of the line."""
    found = {}
    for path in ElementTree.fromstring(text).iter(f"{SVG}path"):
        if edge := path.get("data-arrow"):
            upper, lower = edge.split()
            corners = re.findall(r"(\d+) (\d+)", path.get("d", ""))
            found[upper, lower] = [(float(x), float(y)) for x, y in corners]
    return found


def test_no_arrow_of_the_picture_points_up() -> None:
    found = drawn(architecture.picture())
    assert found
    for (upper, lower), corners in found.items():
        assert lower not in FORBIDDEN.get(upper, ()), f"{upper} → {lower}"
        heights = [y for _, y in corners]
        assert heights == sorted(heights), f"{upper} → {lower}"


def test_the_arrows_are_the_imports_of_the_code() -> None:
    expected = {
        (folder, name)
        for folder in architecture.FOLDERS
        for names in imported(folder).values()
        for name in names & set(architecture.FOLDERS) - {folder}
    }
    assert set(drawn(architecture.picture())) == expected
    kept = drawn(architecture.PICTURE.read_text())
    assert set(kept) == expected, "python -m benchmarks.architecture draws it anew"


def test_a_setting_is_found_in_what_is_handed_on() -> None:
    trace = architecture.Trace(0.5)
    assert trace.holds({"a": [0.1, {"b": 0.5}]}, depth=3)
    assert not trace.holds({"a": [0.1, {"b": 0.5}]}, depth=2)
    assert trace.holds(["train.lr=0.5"], depth=1)
    assert not trace.holds({"a": 0.4}, depth=3)
