"""What a change of structure must leave alone: hashes and losses of configurations of all methods.

tests/golden/frozen.json holds, for each configuration below, its config_hash, and of each of two
rounds the losses, accuracy, bytes, simulated seconds and joules, as of the first version.
`pytest tests/test_frozen.py --regenerate-golden` writes the losses anew where they change on
purpose; a hash never changes for a configuration that means what it meant.
"""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, processor, rounds, simulate, strategies, tolerance

GOLDEN = ROOT / "tests" / "golden" / "frozen.json"
CONFIGURATIONS = [
    "strategy=fedavg",
    "strategy=fedavg strategy.average=median clients.per_round=4",
    "strategy=fedavg strategy.average=trimmed_mean train.optimizer=adam train.lr=0.01",
    "strategy=fedavg strategy.server_optimizer=fedadam strategy.server_learning_rate=0.01",
    "strategy=fedavg strategy.proximal_mu=0.1 train.max_batches=2 train.lr_decay=0.9",
    "strategy=fedavg fleet=mobile fleet.deadline_s=60 fleet.availability=0.8 fleet.over_select=1.3",
    "strategy=oqfl",
    "strategy=oqfl quant.bits=2 quant.per_channel=true quant.wire=codes",
    "strategy=oqfl quant.weight_bits=3 quant.act_bits=32 quant.wire=codes_both fleet=iot",
    "strategy=oqfl quant.learn_step=false strategy.server_optimizer=fedavgm",
    "strategy=heterofl 'submodel.share={0:0.25,1:0.5,default:1.0}' quant.wire=codes quant.bits=4",
    "strategy=fjord 'submodel.share={0:0.25,1:0.5,default:1.0}' strategy.distillation=0.5",
    "strategy=split link.up=int8 link.down=int4 link.rounding=stochastic",
    "strategy=split data.partition=dirichlet fleet=mobile split.cut=auto",
    "strategy=splitfed_v1 'split.cut={0:stage1,1:stage2,default:stage3}' link.up=fp16",
    "strategy=splitfed_v1 quant.bits=4 quant.side=client link.up=topk link.k=0.2",
    "strategy=splitfed_v1 split.cut=auto fleet=mobile fleet.objective=joules fleet.deadline_s=900",
    "strategy=splitfed_v2 link.up=sign link.down=sign model.norm=batch",
    "strategy=splitfed_v2 clients.per_round=0.5 fleet=mobile fleet.jitter=0.3",
    "strategy=splitfed_v3 link.up=randtopk clients.per_round=4 evaluate.clients=3",
    "strategy=splitfed_v3 'split.cut={1:stage2,2:stage3,default:stage1}'",
    "strategy=ushaped link.up=int8 link.down=int2 link.per_channel=true",
    "strategy=ushaped split.cut=0.6 train.server_lr=0.05 train.momentum=0.5",
    "strategy=binarized_split",
    "strategy=binarized_split strategy.base=split privacy.dcor_weight=0.5 privacy.epsilon=5",
    "strategy=binarized_split strategy.base=splitfed_v2 strategy.binarize=both train.epochs=2",
    "strategy=deprune",
    "strategy=deprune strategy.base=split prune.schedule=shrink prune.importance=taylor",
    "strategy=prune strategy.base=splitfed_v2 prune.importance=taylor link.up=int8",
    "strategy=prune prune.ratio=0.5 quant.bits=4 quant.side=client prune.importance=bn",
    "strategy=hierarchical",
    "strategy=hierarchical strategy.server_half=replicated strategy.exit_width=8 link.up=int8",
    "strategy=hierarchical strategy.outage=[2] fleet=mobile strategy.pipelined=true",
    "strategy=hierarchical fleet=iot fleet.availability=0.5 split.cut=auto seed=1",
]  # fmt: skip
EXACT = ("num_", "bytes_", "active_channels")


def found(folder: Path, line: str) -> dict[str, Any]:
    """The hash, and what each round recorded."""
    summary = simulate(folder, *shlex.split(line))
    return {"config_hash": summary["config_hash"], "rounds": rounds(folder)}


def test_every_method_is_frozen() -> None:
    frozen = {line.split()[0].removeprefix("strategy=") for line in CONFIGURATIONS}
    assert frozen == set(strategies())
    assert len(CONFIGURATIONS) >= 30


@pytest.mark.parametrize("line", CONFIGURATIONS)
def test_frozen(line: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    golden = json.loads(GOLDEN.read_text())
    mine, wanted_of = found(tmp_path, line), golden["configurations"]
    if request.config.getoption("--regenerate-golden"):
        wanted_of[line] = {**mine, "made_with": processor()}
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    assert mine["config_hash"] == wanted_of[line]["config_hash"]
    is_rounded = any(word in line for word in ("oqfl", "quant.bits", "binarized", "link."))
    rel = tolerance(wanted_of[line].get("made_with", golden["made_with"]), is_rounded)
    for row, wanted in zip(mine["rounds"], wanted_of[line]["rounds"], strict=True):
        assert row.keys() == wanted.keys()
        for key, value in wanted.items():
            if key.startswith(EXACT) or value is None:
                assert row[key] == value, key
            elif "accuracy" in key:  # a test sample or two may flip where the last bits differ
                assert row[key] == pytest.approx(value, abs=0.006 + rel), key
            else:
                assert row[key] == pytest.approx(value, rel=rel, abs=1e-6), key
