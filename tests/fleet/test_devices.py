"""The tables say where their figures are from, and wrong ones are refused."""

from pathlib import Path

import pytest
import yaml

from fleet.devices import PRECISIONS, TABLES, Device, Link, figure, load_tables, tables

GOOD = {"value": 4.0, "unit": "W", "precision": "assumed", "source": "assumption: none better"}


def figures(node: object) -> list[dict]:
    """All figures of a table, wherever they are in it."""
    if not isinstance(node, dict):
        return []
    if "value" in node:
        return [node]
    return [found for child in node.values() for found in figures(child)]


@pytest.mark.parametrize("name", ["devices", "links", "populations"])
def test_every_number_has_unit_precision_and_source(name: str) -> None:
    text = (TABLES / f"{name}.yaml").read_text()
    found = figures(yaml.safe_load(text))
    assert len(found) > 10
    for one in found:
        assert figure(one, one["unit"]) == one["value"]
        assert one["precision"] in PRECISIONS
        assert ("assumption" in one["source"]) == (one["precision"] == "assumed"), one

    def numbers(node: object) -> int:
        if isinstance(node, dict):
            return sum(numbers(child) for child in node.values())
        return isinstance(node, int | float)

    assert numbers(yaml.safe_load(text)) == len(found)  # no bare ones


@pytest.mark.parametrize("lost", sorted(GOOD))
def test_a_figure_without_one_of_them_is_refused(lost: str) -> None:
    with pytest.raises(ValueError, match=f"exactly value, unit, precision and source: {lost}"):
        figure({key: value for key, value in GOOD.items() if key != lost}, "W")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"value": "4"}, "takes a number"),
        ({"value": -1.0}, "takes a number"),
        ({"value": True}, "takes a number"),
        ({"value": float("nan")}, "takes a number"),
        ({"unit": "mW"}, "unit=mW: takes W"),
        ({"precision": "good"}, "precision=good: takes measured"),
        ({"source": ""}, "says where"),
        ({"source": None}, "says where"),
        ({"note": "x"}, "exactly"),
    ],
)
def test_wrong_figures_are_refused(wrong: dict, message: str) -> None:
    assert figure(GOOD, "W") == 4.0
    with pytest.raises(ValueError, match=message):
        figure(GOOD | wrong, "W")
    with pytest.raises(ValueError, match="takes a figure"):
        figure(4.0, "W")


def test_rows_by_hand() -> None:
    device, link = tables().device("raspberry_pi_4"), tables().link("4g")
    assert device.flops_per_s["fp32"] == pytest.approx(48e9 * 0.271)
    assert device.bytes_per_s == pytest.approx(12.8e9 * 0.25)
    assert device.memory_bytes == 3 * 2**30
    assert (link.down_mbps, link.up_mbps, link.latency_s) == (45.3, 8.2, 0.035)
    # 8.2 Mbit/s up: 438.39 · 8.2 + 1288.04 mW.
    assert link.up_w_per_mbps * link.up_mbps + link.radio_w == pytest.approx(4.882838)
    assert link.tail_s * link.tail_w == pytest.approx(12.27056)


def test_populations_by_hand() -> None:
    mobile = tables().population("mobile")
    assert mobile.devices["phone_high"] == pytest.approx(159 / (18820 + 16428 + 159))
    assert mobile.links == pytest.approx({"3g": 0.1, "4g": 0.4, "5g": 0.1, "wifi": 0.4})
    assert set(tables().populations) == {"uniform", "flagship", "mobile", "iot"}
    assert len(tables().population("uniform").devices) == 1
    with pytest.raises(ValueError, match="fleet=tablets: takes uniform, flagship, mobile, iot"):
        tables().population("tablets")
    with pytest.raises(ValueError, match="device=x: takes phone_low"):
        tables().device("x")
    with pytest.raises(ValueError, match="link=x: takes 3g"):
        tables().link("x")


def test_narrow_formats_are_no_faster_than_int8_unless_said_so() -> None:
    for device in tables().devices.values():
        speed = device.flops_per_s
        assert speed["int1"] == speed["int4"] == speed["int8"] >= speed["fp32"]
        assert speed["int8"] <= 2 * speed["fp32"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in TABLES.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    return tmp_path


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("devices", "unit: GFLOP/s", "unit: FLOP/s", "phone_low: fp32: unit=FLOP/s: takes GFLOP/s"),
        ("devices", "    int4:", "    int2:", "phone_low: compute: takes speeds at fp32"),
        ("devices", "  efficiency: {value: 0.1215", "  efficiency: {value: 2", "takes a share"),
        (
            "devices",
            "  idle_power: {value: 0.2",
            "  idle_power: {value: 2",
            "0 ≤ idle_power ≤ power",
        ),
        (
            "devices",
            "  memory: {value: 512",
            "  memory: {value: 0",
            "positive bandwidth and memory",
        ),
        ("devices", "fp32: {value: 4.0", "fp32: {value: 0", "positive speed at fp32"),
        ("devices", "  power: ", "  watts: ", "phone_low: watts: takes efficiency"),
        ("devices", "phone_low:", "phone_low: 3\nx:", "phone_low: takes a row"),
        ("devices", "phone_low:", "phone_low: [", "cannot be read as YAML"),
        (
            "links",
            "  up: {value: 1.3",
            "  up: {value: 0",
            "3g: link 3g: takes positive down and up",
        ),
        ("links", "value: 150", "value: .inf", "takes latency and powers"),
        ("links", "  round_trip: ", "  rtt: ", "rtt: takes down"),
        ("populations", "    ideal: {value: 1", "    ideal: {value: 0", "positive sum"),
        ("populations", "    ideal: {", "    tablet: {", "uniform: there is no device tablet"),
        ("populations", "  links:", "  link:", "uniform: link: takes about, devices"),
        ("populations", "  about: everybody", "  server: cloud\n  about: e", "no server cloud"),
    ],
)
def test_bad_tables_are_refused_by_name(
    folder: Path, file: str, old: str, new: str, message: str
) -> None:
    edited(folder / f"{file}.yaml", old, new)
    with pytest.raises(ValueError, match=message) as caught:
        load_tables(folder)
    assert f"{file}.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_own_table_is_read(folder: Path) -> None:
    edited(folder / "devices.yaml", "fp32: {value: 4.0", "fp32: {value: 8.0")
    device = load_tables(folder).device("phone_low")
    assert device.flops_per_s["fp32"] == pytest.approx(8e9 * 0.1215)


def test_missing_figures_and_files(folder: Path) -> None:
    links = yaml.safe_load((folder / "links.yaml").read_text())
    del links["3g"]["power_up"]
    (folder / "links.yaml").write_text(yaml.safe_dump(links))
    with pytest.raises(ValueError, match="3g: power_up: is missing"):
        load_tables(folder)
    (folder / "links.yaml").write_text("")
    with pytest.raises(ValueError, match="takes rows by name"):
        load_tables(folder)
    (folder / "links.yaml").unlink()
    with pytest.raises(FileNotFoundError):
        load_tables(folder)


def test_impossible_devices_and_links_are_refused() -> None:
    with pytest.raises(ValueError, match="positive speed at fp32"):
        Device("x", {"int8": 1.0}, 1, 1, 1)
    with pytest.raises(ValueError, match="int3: takes speeds at fp32"):
        Device("x", {"fp32": 1.0, "int3": 1.0}, 1, 1, 1)
    with pytest.raises(ValueError, match="takes latency and powers"):
        Link("x", 1, 1, latency_s=-1)
