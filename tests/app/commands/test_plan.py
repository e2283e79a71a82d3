"""The table of what cuts cost on devices."""

import pytest

from app.commands import plan
from app.config.composition import compose
from app.experiment import resolve
from fleet.clock import parallel
from fleet.devices import tables
from fleet.phases import phases

CHOSEN = ["model=lenet5", "data=mnist", "train.batch_size=10", "train.momentum=0"]


def test_a_batch_of_lenet5_by_hand() -> None:
    found = {row.name: row.work for row in plan.rows(resolve(compose(CHOSEN)))}
    total = found["stage1"].total()
    conv = 2 * 28 * 28 * 6 * 25  # per sample; its backward pass has no use for the input's gradient
    assert total.flops == {"fp32": 10 * 2 * conv}
    assert total.bytes_up == 10 * (6 * 14 * 14 * 4 + 1)  # and a byte for the label
    assert total.bytes_down == 10 * 6 * 14 * 14 * 4
    (batch,) = found["stage1"].batches
    rest = 2 * (10 * 10 * 16 * 150 + 400 * 120 + 120 * 84 + 84 * 10)
    assert batch.exchanges[0].server.flops == {"fp32": 10 * 3 * rest}
    whole = found[plan.WHOLE]
    assert whole.total().flops == {"fp32": 10 * (2 * conv + 3 * rest)}
    assert whole.total().bytes_up == 0
    assert found["stage1"].peak_bytes < found["stage4"].peak_bytes < whole.peak_bytes
    link, server = tables().link("wifi"), tables().device("server")
    turns = parallel([phases(found["stage1"], tables().device("phone_mid"), link, server)])
    # 47,050 B at 26.3 Mbit/s, 47,040 B at 34.5, 10.5 ms each; 4.7 MFLOP at 1.514 GFLOP/s.
    assert turns[0] is not None
    assert turns[0].end_s == pytest.approx(0.0143 + 0.0109 + 2 * 0.0105 + 0.0031, abs=0.002)


def test_output_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["model=cnn", "fleet=iot", "fleet.objective=joules"]) == 0
    printed = capsys.readouterr().out
    assert "jetson_nano" in printed
    assert "fixed: 85.73 Mbit/s down" in printed
    assert printed.count("*") == 2 * 4  # a best cut for each link and device
    for overrides, message in (
        (["fleet=x"], "error: fleet=x: takes flagship, iot, mobile, trace, uniform"),
        (["fleet.objective=x"], "error: fleet.objective=x: takes seconds, joules"),
        (["fleet=trace"], "error: fleet=trace: takes either fleet.population or fleet.capacity"),
        (["model=nothing"], "error: model=nothing: takes cnn, "),
    ):
        assert plan.main(overrides) == 1
        assert capsys.readouterr().err.startswith(message)


def test_cuts_at_each_width_and_slices(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan.rows(resolve(compose(["model=cnn", "data=mnist", "plan=auto"])))
    names = [row.name for row in found]
    assert {"stage1 2bit", "stage1 8bit", f"{plan.WHOLE} 4bit"} <= set(names)
    capacities = {row.name.split()[-1]: row.capacity for row in found}
    assert capacities["8bit"] == 1
    assert 1 / 16 < capacities["2bit"] < 1 / 4  # but for the edges, which have 8 bits
    assert plan.main(["model=cnn", "data=mnist", "plan=auto", "plan.floor=0.9"]) == 0
    starred = [row for row in capsys.readouterr().out.splitlines() if "*" in row]
    assert starred
    assert all("8bit" in row for row in starred)
    assert plan.main(["model=cnn", "strategy=heterofl", "plan=auto", "quant.bits=8"]) == 0
    starred = [row for row in capsys.readouterr().out.splitlines() if "*" in row]
    assert starred
    assert all("width50" in row for row in starred)  # a quarter of the bit operations
    assert plan.main(["model=cnn", "strategy=heterofl", "submodel.share=auto"]) == 0
    assert "*" in next(x for x in capsys.readouterr().out.splitlines() if "width100" in x)


def test_a_device_without_a_floor_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["model=cnn", "strategy=heterofl", "plan=auto", "quant.bits=8"]
    assert plan.main([*chosen, "plan.floor={phone_low: 0.9, default: 0}"]) == 0
    stated = capsys.readouterr().out
    assert plan.main([*chosen, "plan.floor={phone_low: 0.9}"]) == 0
    assert capsys.readouterr().out == stated
    starred = [row.split()[1] for row in stated.splitlines() if "*" in row]
    assert {*starred} == {"width100", "width6.25"}  # phone_low's, and the cheapest
