"""Every network trains, quantized and cut, in whole runs."""

from pathlib import Path

import pytest
from conftest import ROOT, rounds, simulate

MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
LARGE = {
    "densenet121", "densenet201", "inception_v3", "mobilenetv2", "resnet18", "resnet50", "vgg16",
    "vgg19",
}  # fmt: skip
TINY = ("clients.total=2", "data.max_train=8", "train.batch_size=4", "checkpoint.every=0")


def data_for(model: str) -> list[str]:
    """CIFAR-10's shape, but for heartbeats and text; Inception-v3 takes 75 pixels or more."""
    if model == "transformer":
        return ["data=stdlib_text"]
    kind, shape = ("beats", "[1,128]") if model == "ecg1d" else ("images", "[3,32,32]")
    large = ["data.image_size=75"] if model == "inception_v3" else []
    source = "data.source=tests.app.random_samples"
    return [source, f"data.root=/{kind}", f"data.name={kind}", f"data.shape={shape}", *large]


@pytest.mark.parametrize(
    "model",
    [pytest.param(m, marks=pytest.mark.long) if m in LARGE else m for m in MODELS],
)
def test_two_rounds_of_oqfl(model: str, tmp_path: Path) -> None:
    chosen = ("strategy=oqfl", "quant.bits=4", f"model={model}", "train.lr=1e-3", *TINY)
    summary = simulate(tmp_path, *chosen, *data_for(model))
    assert summary["rounds"] == 2
    assert [record["num_failed"] for record in rounds(tmp_path)] == [0, 0]
    assert summary["client_model_bytes"] < summary["client_params"]  # less than a byte each
    assert summary["quantized_share"] == 1


@pytest.mark.parametrize(
    "model",
    [*(pytest.param(m, marks=pytest.mark.long) for m in ("resnet18", "mobilenetv2")), "ecg1d"],
)
def test_two_rounds_over_a_cut(model: str, tmp_path: Path) -> None:
    chosen = ("strategy=ushaped", "split.cut=0.2", f"model={model}", "train.lr=1e-3", *TINY)
    summary = simulate(tmp_path, *chosen, "link.up=int8", *data_for(model))
    assert summary["rounds"] == 2
    assert 0 < summary["client_flops_per_sample"] < 0.5 * summary["network_flops_per_sample"]
