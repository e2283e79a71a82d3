"""engine.precision=bf16: what changes, what stays in float32, what must be equal all the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import assert_same_arrays, assert_same_run, rounds, simulate, small, strategies
from safetensors.numpy import load_file
from torch import Tensor, nn

from app import device, experiment
from app.config.composition import compose
from app.engine import Simulator
from app.evaluation import measure, passes
from app.run_folder import FolderTakenError
from models.objective import Classification
from models.precision import BF16, computing
from models.split import cut_points
from strategies import binarized_split
from strategies.client.training import LocalTraining, batches, make_optimizer, train_epochs
from strategies.contract import Streams

LONG = pytest.mark.long
MIXED = "engine.precision=bf16"
FEW = ("clients.total=3", "train.epochs=1", "data.max_train=96", "data.max_test=100")
FORKED = ("engine=ray", "engine.fork=true", "engine.workers=2")
# Where there is more to it than products: what rounds, measures, learns from outputs.
METHODS = {
    "oqfl": ("quant.bits=2", "quant.wire=codes", "model.norm=batch"),
    "heterofl": ("submodel.share={0:0.5,default:1.0}", "quant.bits=4", "quant.per_channel=true"),
    "fjord": ("submodel.share={0:0.5,default:1.0}", "strategy.distillation=0.5"),
    "splitfed_v1": ("quant.bits=4", "link.up=int8", "link.down=topk"),
    "splitfed_v2": ("model.norm=batch", "link.up=sign", "link.rounding=stochastic"),
    "splitfed_v3": ("model.norm=group", "link.up=randtopk"),
    "ushaped": ("link.up=fp16", "link.down=int2"),
    "binarized_split": (
        "strategy.binarize=both", "privacy.dcor_weight=0.5", "privacy.epsilon=5",
        "data.max_test=20",
    ),
    "deprune": ("prune.importance=taylor", "quant.bits=4"),
    "prune": ("prune.importance=taylor", "prune.pretrain_rounds=1"),
    "hierarchical": ("quant.bits=4", "strategy.exit_width=8"),
}  # fmt: skip


@pytest.fixture(scope="module")
def two_processes() -> Iterator[Simulator]:
    simulator = Simulator()
    yield simulator
    simulator.close()


IN_EVERY_RUN = ("oqfl", "hierarchical")


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m in IN_EVERY_RUN else LONG) for m in strategies()]
)
def test_every_method(
    method: str, two_processes: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binarized_split, "ATTACK_EPOCHS", 1)
    chosen = (f"strategy={method}", *FEW, *METHODS.get(method, ()))
    simulate(tmp_path / "fp32", *chosen)
    summary = simulate(tmp_path / "bf16", *chosen, MIXED)
    simulate(tmp_path / "two", *chosen, MIXED, *FORKED, simulator=two_processes)
    assert_same_run(tmp_path / "bf16", tmp_path / "two")
    assert (summary["precision"], summary["device"], summary["num_failed"]) == ("bf16", "cpu", 0)
    one, other = rounds(tmp_path / "bf16"), rounds(tmp_path / "fp32")
    for mixed, plain in zip(one, other, strict=True):
        assert mixed["train_loss"] != plain["train_loss"]
        assert abs(mixed["train_loss"] - plain["train_loss"]) < 0.1 * plain["train_loss"]
        for key in ("bytes_up", "bytes_down", "sim_s", "energy_j"):
            assert mixed[key] == plain[key], key
    arrays, plain_arrays = (
        load_file(tmp_path / name / "model.safetensors") for name in ("bf16", "fp32")
    )
    assert {n: a.dtype for n, a in arrays.items()} == {n: a.dtype for n, a in plain_arrays.items()}


# Identities ---------------------------------------------------------------------------------------

NETWORKS = [
    pytest.param(("model=cnn", "model.norm=batch"), id="batch norm"),
    pytest.param(("model._target_=tests.test_identities.Residual",), id="dropout, residual"),
]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_cut_network_trains_as_the_whole_one(network: tuple[str, ...], tmp_path: Path) -> None:
    chosen = (*network, *FEW, MIXED, "data.partition=dirichlet")
    simulate(tmp_path / "whole", "strategy=fedavg", *chosen)
    names = [point.name for point in cut_points(experiment.network(small(*network)), (1, 8, 8))]
    cuts = f"split.cut={{0:{names[0]},1:{names[1]},default:{names[2]}}}"
    simulate(tmp_path / "cut", "strategy=splitfed_v1", cuts, *chosen)
    simulate(tmp_path / "twice", "strategy=ushaped", f"split.cut={names[1]}", *chosen)
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    for name in ("cut", "twice"):
        assert_same_arrays(weights, load_file(tmp_path / name / "model.safetensors"))
        for one, other in zip(rounds(tmp_path / "whole"), rounds(tmp_path / name), strict=True):
            for key in ("accuracy", "loss", "train_loss"):
                assert one[key] == other[key]


class Sequences(nn.Module):
    """Rows of an image as a sequence, through attention and a recurrent layer behind a product."""

    def __init__(self, kind: str = "LSTM", num_classes: int = 10) -> None:
        super().__init__()
        self.into = nn.Linear(8, 12)
        self.attention = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)
        self.rnn = getattr(nn, kind)(12, 12, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(24, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.attention(self.into(x.squeeze(1)))
        return self.head(self.rnn(hidden)[0][:, -1])


@LONG
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_networks_of_the_users_own(kind: str, tmp_path: Path) -> None:
    network = (f"model._target_={__name__}.Sequences", f"+model.kind={kind}", *FEW)
    for folder, chosen in {
        "whole": ("strategy=fedavg",),
        "cut": ("strategy=splitfed_v1", "split.cut=into"),
        "bits": ("strategy=oqfl", "quant.bits=4"),
    }.items():
        summary = simulate(tmp_path / folder, *chosen, *network, MIXED)
        assert summary["num_failed"] == 0
    assert_same_arrays(
        *(load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    )


class Inner(Sequences):
    """Asks for autocast itself, whose cache of weights would outlive the step."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


@pytest.mark.parametrize(
    ("network", "apart"),
    [
        ("model=cnn", 0.0),
        pytest.param("model=resnet8", 0.0, marks=LONG),
        # Weights used more than once in a pass: their gradients are added up in bfloat16 by torch's
        # cache, in float32 without it. With weights from before the first step it is 0.1 and more.
        (f"model._target_={__name__}.Inner", 2e-3),
    ],
)
def test_one_context_for_all_steps_is_one_for_each_forward_pass(network: str, apart: float) -> None:
    """As torch recommends it: backward passes outside, and weights cast anew after each step."""
    chosen = small("strategy=fedavg", network)
    data, settings = experiment.client_data(chosen, 0), LocalTraining(epochs=3, batch_size=8)
    streams = Streams(0, 1, 0)
    one, other = experiment.network(chosen), experiment.network(chosen)
    with computing(BF16, "cpu"):
        train_epochs(one, data, settings, streams)
    assert isinstance(data.x, Tensor)
    optimizer = make_optimizer([other.train()], settings)
    for rows in batches(data.rows, settings, streams.generator("batches")):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = other(data.x[rows])
        assert outputs.dtype == torch.bfloat16
        optimizer.zero_grad()
        nn.functional.cross_entropy(outputs.float(), data.y[rows]).backward()
        optimizer.step()
    for (name, mine), its in zip(
        one.state_dict().items(), other.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, its, rtol=0, atol=apart, msg=name)


# What stays in float32 ----------------------------------------------------------------------------


def test_nothing_is_entered_for_fp32() -> None:
    with computing("fp32", "cpu"), computing("fp32", "cuda"):
        assert not torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled("cuda")


def test_what_is_done_with_outputs_of_a_test_is_in_float32() -> None:
    chosen = small("strategy=fedavg")
    model, data = experiment.network(chosen), experiment.dataset(chosen)
    where = device.Where(torch.device("cpu"), BF16)
    outputs = []
    for _, part in passes(model, data.test_x, len(data.test_y), where=where):
        assert not torch.is_autocast_enabled("cpu") and part.dtype == torch.float32
        outputs.append(part)
    found = measure(model, data.test_x, data.test_y, Classification(), where=where)
    expected = nn.functional.cross_entropy(torch.cat(outputs), data.test_y)
    assert found["loss"] == pytest.approx(float(expected))
    assert found["loss"] != measure(model, data.test_x, data.test_y, Classification())["loss"]


# Whose experiment it is ---------------------------------------------------------------------------


def test_it_is_another_experiment(tmp_path: Path) -> None:
    plain, mixed = small(), small(MIXED)
    assert plain.hash == small("engine.precision=fp32").hash != mixed.hash
    assert mixed.identity == {**plain.identity, "engine.precision": "bf16"}
    for first, second, message in (
        ("fp32", "bf16", r"engine.precision \(was None, is bf16\)"),
        ("bf16", "fp32", r"engine.precision \(was bf16, is None\)"),
    ):
        simulate(tmp_path / first, *FEW, f"engine.precision={first}", "rounds=1")
        with pytest.raises(FolderTakenError, match=f"holds another experiment: {message}"):
            simulate(tmp_path / first, *FEW, f"engine.precision={second}", "resume=true")
    simulate(tmp_path / "bf16", *FEW, MIXED, "resume=true")
    simulate(tmp_path / "whole", *FEW, MIXED)
    assert_same_run(tmp_path / "bf16", tmp_path / "whole")


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"^engine.precision=fp16: takes fp32, bf16$"):
        compose(["engine.precision=fp16"])
    with pytest.raises(ValueError, match=r"engine.precision=bf16 with engine.device=mps: takes"):
        compose([MIXED, "engine.device=mps"])
