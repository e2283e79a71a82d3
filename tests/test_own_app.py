"""A Flower app of the user's own: README's runs as it stands; a wrong one is told what it lacks."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from app.engine import SerialGrid
from app.worker import make_context
from strategies import messages
from strategies.contract import Update
from strategies.fedavg import FedAvg

SECTION = (
    (ROOT / "README.md")
    .read_text()
    .partition("**Use the strategies in a Flower app of your own.**")[2]
)
SNIPPET = SECTION.partition("```python\n")[2].partition("```")[0]
# Runs the file as `python my_app.py` does, and then says what of app/ was imported.
DRIVER = """
import runpy, sys
runpy.run_path(sys.argv[1], run_name="__main__")
print("imported:", *[m for m in sys.modules if m.partition(".")[0] in ("app", "hydra", "wandb")])
"""


@pytest.fixture
def my_app(tmp_path: Path) -> Path:
    path = tmp_path / "my_app.py"
    path.write_text(SNIPPET)
    return path


def accuracies(text: str) -> list[str]:
    return re.findall(r"^round \d: accuracy [\d.]+$", text, re.M)


@pytest.mark.timeout(600)
def test_the_readmes_app(my_app: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In Flower's simulation, in a process of its own; on another grid the numbers are the same."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(my_app)],
        cwd=my_app.parent, env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"},
        capture_output=True, text=True, check=False, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = accuracies(done.stdout)
    assert len(found) == 3 and float(found[-1].split()[-1]) > 0.8, done.stdout
    assert "imported:\n" in done.stdout
    own = runpy.run_path(str(my_app))
    grid = SerialGrid(own["NUM_CLIENTS"], {}, own["client_app"])
    own["server_app"](grid, make_context(1, 0, 0, {}))
    assert accuracies(capsys.readouterr().out) == found


def test_its_client_app_has_at_most_25_lines() -> None:
    client = SNIPPET.partition("client_app = ClientApp()")[2].partition("server_app = ")[0]
    assert len(client.split("\n")) <= 25
    assert not re.search(r"^(from|import) app\b", SNIPPET, re.M)


# ClientApps that lack something -------------------------------------------------------------------

Function = Callable[[Message, Context], Message]


def good_query(message: Message, context: Context) -> Message:
    return messages.introduction(message, int(str(context.node_config["partition-id"])), 10)


def good_train(message: Message, context: Context) -> Message:
    arrays, task = messages.read_task(message, 0, 10)
    assert task.num_examples == 10 and task.streams.server_round == 1
    return messages.reply(message, Update(arrays, 10, 0.5))


def as_flower_documents(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"train_loss": 0.5, "num-examples": 10})
    arrays = ArrayRecord({"w": torch.zeros(2)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def run(query: Function | None, train: Function | None) -> Any:
    app = ClientApp()
    if query:
        app.query()(query)
    if train:
        app.train()(train)
    return FedAvg().start(SerialGrid(2, {}, app), ArrayRecord({"w": torch.zeros(2)}), num_rounds=1)


def test_a_complete_one_runs() -> None:
    assert messages.to_arrays(run(good_query, good_train).arrays)["w"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("query", "train", "message"),
    [
        (None, good_train, r"node 0 .*no query function; .*@app\.query\(\).*introduction\(message"),
        (good_query, None, r"no train function; .*@app\.train\(\) .*reply\(message, update\)$"),
        (as_flower_documents, good_train, r"node 0 .*it has no .*introduction\(message, partition"),
        (good_query, as_flower_documents, r"it has no 'train-loss'; .*@app\.train\(\).*reply\("),
    ],
)
def test_one_that_lacks_a_function_is_told_which(
    query: Function | None, train: Function | None, message: str
) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message) as caught:
        run(query, train)
    assert "\n" not in str(caught.value)


def test_the_same_from_flowers_runtimes() -> None:
    """Their error replies hold the message of an exception in another form."""
    content = RecordDict({"config": ConfigRecord()})
    sent = Message(content, dst_node_id=1, message_type="query")
    sent.metadata.__dict__["_message_id"] = "1"
    raised = "\nClientApp failed.\nMessage: No query function registered with name 'default'"
    text = f"<class 'flwr.clientapp.client_app.ClientAppException'>:<'{raised}'>"
    reply = Message(Error(0, text), reply_to=sent)
    assert messages.why(reply).startswith("its ClientApp has no query function; expected ")
    other = Message(Error(2, "Traceback\nKeyError: 'x'"), reply_to=sent)
    assert messages.why(other) == "Traceback\nKeyError: 'x'"
