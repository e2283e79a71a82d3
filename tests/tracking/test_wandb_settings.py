"""wandb's own settings: its environment, its keys, its names; tested against a server here."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import wandb
import yaml
from test_wandb_sink import CONFIG, SETTINGS, client, record
from wandb_reader import offline_runs, read_only_run, table_of
from wandb_server import serving

from tracking import wandb_names
from tracking.wandb_settings import WandbSettings, check_online, resolved
from tracking.wandb_sink import Inputs, WandbSink

KEY = "a" * 40


pytestmark = pytest.mark.usefixtures("no_wandb_environment")


def job(folder: Path, overrides: list[str], swept: list[str] | None = None) -> Path:
    """A folder as Hydra leaves it before a job begins."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    if swept is not None:
        content = {"hydra": {"overrides": {"task": swept}}}
        (folder.parent / "multirun.yaml").write_text(yaml.safe_dump(content))
    return folder


# Names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "swept", "name"),
    [
        (["quant.bits=4", "seed=3"], ["quant.bits=4,8", "seed=3,4"],
         "bits=4"),
        (["quant.bits=4", "train.lr=0.1"], ["quant.bits=4", "train.lr=0.1,1"], "lr=0.1"),
        (["quant.bits=4", "rounds=3"], None, "bits=4 rounds=3"),
        (["link.up=int8", "link.down=int8"], ["link.up=int4,int8", "link.down=int4,int8"],
         "up=int8 down=int8"),
        (["train.lr=0.1", "my.lr=2"], ["train.lr=1,2", "my.lr=1,2"], "train.lr=0.1 my.lr=2"),
        (["model=cnn", "data=digits", "split.cut=s1"], ["model=a,b"], "model=cnn data=digits"),
        (["engine=serial", "engine.precision=bf16"], None, "precision=bf16"),
        ([], None, ""),
    ],
)  # fmt: skip
def test_names_tell_method_swept_values_and_seed(tmp_path, overrides, swept, name):
    config = CONFIG | {"seed": 3, "rounds": 3, "link.up": "x", "link.down": "x", "my.lr": 2}
    config |= {"engine.precision": "bf16"}  # of the engine the one key that is stored
    found = wandb_names.run_name(job(tmp_path / "0", overrides, swept), config)
    assert found.split() == ["oqfl", *name.split(), "seed=3"]  # oqfl does not read split.cut


def test_a_name_fits(tmp_path):
    long = [f"model.option{number}={'x' * 40}" for number in range(9)]
    config = CONFIG | {text.partition("=")[0]: 0 for text in long}
    assert len(wandb_names.run_name(job(tmp_path / "0", long), config)) <= 128
    assert len(wandb_names.collection(tmp_path, "a/b c" * 99)) <= 100


def test_a_folder_of_somebody_else_names_nothing_odd(tmp_path):
    identity = tmp_path / wandb_names.IDENTITY
    identity.parent.mkdir()
    weights = tmp_path / "my weights.pth"
    for content, run_id, name in [
        ({"id": "*", "collection": "../a b*" * 40}, None, None),
        ({"id": "../../x", "collection": 3}, None, "weights-my-weights"),
        ({"id": ["a"]}, None, "weights-my-weights"),
        ([], None, "weights-my-weights"),
        ({"id": "abc.1", "collection": "digits-now"}, "abc.1", "model-digits-now"),
    ]:
        identity.write_text(json.dumps(content))
        assert wandb_names.stored_id(tmp_path) == run_id
        found = wandb_names.of_weights(weights)
        assert found == (name or found)
        wandb.Artifact(found, "model")  # which refuses other names


def test_a_damaged_file_of_hydras_is_no_hindrance(tmp_path):
    folder = job(tmp_path / "0", [], [])
    for path in (folder / ".hydra" / "overrides.yaml", tmp_path / "multirun.yaml"):
        for text in ("{", "3", "hydra: 3"):
            path.write_text(text)
            assert wandb_names.run_name(folder, CONFIG) == "oqfl"


# The environment --------------------------------------------------------------------------------


def test_the_environment_speaks_where_the_configuration_is_silent():
    silent = WandbSettings()
    found, said = resolved(silent, {})
    assert (found.mode, found.project, found.entity, said) == ("offline", "cutbit", None, [])
    there = {"WANDB_MODE": "online", "WANDB_PROJECT": "p", "WANDB_ENTITY": "e"}
    found, said = resolved(silent, there)
    assert (found.mode, found.project, found.entity, said) == ("online", "p", "e", [])
    assert resolved(silent, {"WANDB_MODE": "dryrun"})[0].mode == "offline"
    assert resolved(silent, {"WANDB_PROJECT": ""})[0].project == "cutbit"
    found, said = resolved(replace(silent, mode="offline", project="p"), there)
    assert (found.mode, found.project, found.entity) == ("offline", "p", "e")
    assert said == ["tracker.wandb.mode=offline: WANDB_MODE=online is not used"]
    with pytest.raises(ValueError, match=r"^WANDB_MODE=shared: takes offline, online, dis"):
        resolved(silent, {"WANDB_MODE": "shared"})
    with pytest.raises(ValueError, match=r"^WANDB_TAGS=a,,b: takes tags of 1 to 64 signs"):
        resolved(silent, {"WANDB_TAGS": "a,,b"})


def test_the_environment_of_a_run(tmp_path, monkeypatch, caplog):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "run"
    folder.mkdir()
    for name, value in {
        "WANDB_PROJECT": "theirs", "WANDB_ENTITY": "team", "WANDB_TAGS": "a, b,oqfl",
        "WANDB_NOTES": "why", "WANDB_DIR": str(elsewhere), "WANDB_JOB_TYPE": "kind",
        "WANDB_RUN_GROUP": "g", "WANDB_NAME": "mine", "WANDB_RUN_ID": "given",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for _ in range(2):  # begun twice
        sink = WandbSink(WandbSettings(project="ours"), folder, CONFIG)
        sink.round(record(1), ())
        sink.finish({"rounds": 1})
    run = read_only_run(elsewhere)
    assert (run.project, run.entity, run.group, run.name) == ("ours", "team", "g", "mine")
    assert (run.notes, run.job_type, run.id) == ("why", "kind", "given")
    assert run.tags == ("oqfl", "cnn", "digits", "a", "b")
    assert "tracker.wandb.project=ours: WANDB_PROJECT=theirs is not used" in caplog.text
    assert offline_runs(folder) == []


def test_jobs_of_a_sweep_have_ids_of_their_own(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    ids = []
    for number in "01":
        (tmp_path / number).mkdir()
        WandbSink(SETTINGS, tmp_path / number, CONFIG, "name/time").finish({})
        ids.append(read_only_run(tmp_path / number).id)
    assert len({*ids, "given"}) == 3
    assert caplog.text.count("WANDB_RUN_ID: is not used by the jobs of a sweep") == 1


def test_a_run_begun_again_is_the_same(tmp_path):
    found = []
    for done in ((), [record(1)], [record(1), record(2)]):
        sink = WandbSink(SETTINGS, tmp_path, CONFIG, "", done)
        sink.round(record(len(done) + 1), ())
        sink.finish(None)
        found.append(read_only_run(tmp_path))
    assert len({run.id for run in found}) == 1
    assert [row["_step"] for row in found[-1].history] == [1, 2, 3]


def test_keys_and_host_are_those_of_wandb(tmp_path, monkeypatch):
    """`wandb login --host` leaves them where only wandb knows to look."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)

    def refusal(mode: str | None = "online", **environment: str) -> str:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            wandb.teardown()
            try:
                check_online(WandbSettings(mode=mode))
            except ValueError as error:
                return str(error)
            return ""

    closed = "http://127.0.0.1:9"
    assert refusal().startswith("tracker.wandb.mode=online: no key for https://")
    with serving() as server:
        command = [str(Path(sys.executable).with_name("wandb")), "login", "--host", server.url, KEY]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=60, capture_output=True)
    assert refusal() == ""
    other = refusal(WANDB_BASE_URL=closed)
    assert other.startswith(f"tracker.wandb.mode=online: no key for {closed}; set WANDB_API_KEY")
    short = refusal(WANDB_API_KEY="short")
    assert short.startswith("tracker.wandb.mode=online: WANDB_API_KEY invalid: ")
    assert refusal(None, WANDB_MODE="online") == ""
    silent = refusal(None, WANDB_MODE="online", WANDB_BASE_URL=closed)
    assert silent.startswith(f"WANDB_MODE=online: no key for {closed}")
    assert refusal("offline", WANDB_BASE_URL=closed) == refusal(None, WANDB_BASE_URL=closed) == ""


# Online -----------------------------------------------------------------------------------------


def online(folder: Path, done: int, last: int, finished: bool) -> None:
    """Rounds up to ``last``, in a process that knows nothing of the one before."""
    wandb.teardown()
    before = [record(r) for r in range(1, done + 1)]
    inputs = Inputs({"name": "digits"})
    sink = WandbSink(WandbSettings(mode="online"), folder, CONFIG, "", before, inputs)
    for r in range(done + 1, last + 1):
        sink.round(record(r), ())
    sink.finish({"rounds": last, "final_accuracy": last / 10} if finished else None)


def test_an_online_run_that_is_resumed_twice_is_one(tmp_path, monkeypatch, capfd):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model.safetensors").write_text("weights")
    with serving() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        online(folder, 0, 3, finished=False)
        online(folder, 2, 4, finished=False)  # round 3 is run again
        online(folder, 4, 5, finished=True)
        wandb.teardown()
    assert capfd.readouterr() == ("", "")
    (run,) = server.runs.values()
    assert run.id == wandb_names.stored_id(folder)
    assert [row["round"] for row in run.history] == [1, 2, 3, 4, 5]
    assert [row["_step"] for row in run.history] == [1, 2, 3, 4, 5]
    assert [row["total_bytes"] for row in run.history] == [r * 2**40 + r * (r + 1) // 2
                                                           for r in range(1, 6)]  # fmt: skip
    assert run.summary["accuracy"] == {"max": 0.5, "last": 0.5}
    assert (run.exit_code, run.given["jobType"], run.given["displayName"]) == (0, "train", "oqfl")
    names = [one["artifactCollectionName"] for one in server.artifacts]
    assert sorted(names) == ["data-digits"] * 3 + [f"model-{tmp_path.name}"]
    assert {*server.used} == {
        (run.id, server.versions["data-digits", server.artifacts[0]["digest"]])
    }
    assert len(server.versions) == 2  # one version of the data


# What is kept -----------------------------------------------------------------------------------


def test_artifacts_of_a_sweep_are_versions_of_one(tmp_path):
    aliases = []
    for number, accuracy in enumerate([0.5, 0.4, 0.7, 0.7, None]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "model.safetensors").write_text(str(number))
        summary = {"final_accuracy": accuracy, "rounds": 1}
        (folder / "summary.json").write_text(json.dumps(summary))
        sink = WandbSink(SETTINGS, folder, CONFIG, "digits/2026 é")
        sink.finish(summary)
        run = read_only_run(folder)
        assert run.collections["model"] == "model-digits-2026-"
        aliases.append(run.aliases["model"])
    assert ["best" in one for one in aliases] == [True, False, True, False, False]
    assert all("latest" in one for one in aliases)


def test_data_and_weights_are_inputs(tmp_path):
    first, second = tmp_path / "a" / "run", tmp_path / "b" / "run"
    data = {"name": "my data", "shape": [1, 8, 8], "content": "c0ffee"}
    for folder, weights in ((first, None), (second, first / "model.safetensors")):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text("weights")
        sink = WandbSink(SETTINGS, folder, CONFIG, "", (), Inputs(data, "/data/x.npz", weights))
        sink.finish({"rounds": 1})
    run = read_only_run(second)
    assert run.inputs == {"dataset": "data-my-data", "model": "model-a"}
    assert json.loads(Path(run.artifacts["dataset"]["data.json"]).read_text()) == data
    before = read_only_run(first)
    assert before.collections["model"] == "model-a"
    assert before.digests["model"] == run.input_digests["model"]  # the same version


def test_clients_are_a_table_where_they_are_asked_for(tmp_path):
    rows = [client(r, p, float(p)) for r in (1, 2) for p in range(3)]
    text = "".join(json.dumps(one.to_dict()) + "\n" for one in rows)
    (tmp_path / "clients.jsonl").write_text(text)
    sink = WandbSink(replace(SETTINGS, clients=True), tmp_path, CONFIG)
    sink.round(record(1), ())
    sink.finish({"rounds": 1})
    run = read_only_run(tmp_path)
    found = table_of(run, tmp_path, "clients/table")
    assert found["columns"][:3] == ["round", "partition", "status"]  # none has a device
    assert [row[:2] for row in found["data"]] == [[r, p] for r in (1, 2) for p in range(3)]
    assert len(run.history) == 1


def test_console_and_system_metrics_by_a_key(tmp_path):
    for number, (settings, kinds) in enumerate(
        [(SETTINGS, set()), (replace(SETTINGS, console=True, system=True), {"output_raw", "stats"})]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        sink = WandbSink(settings, folder, CONFIG)
        print("printed")
        sink.round(record(1), ())
        sink.finish({"rounds": 1})
        assert read_only_run(folder).kinds & {"output_raw", "stats"} == kinds
