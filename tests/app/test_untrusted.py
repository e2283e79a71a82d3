"""A run's folder is data: what it names is not run, resolved, waited for or written through."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import save_file
from torch import nn

from app import experiment
from app.commands import exits, export, ptq
from app.config.composition import TARGETS, compose
from app.config.errors import explain
from app.config.stored import ours
from app.run_folder import MODEL, load_experiment, write_json
from models.build import build

CODE = "import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\n"
NETWORK = (
    "from torch import nn\nclass Net(nn.Linear):\n    def __init__(self): super().__init__(2, 3)"
)
COMMANDS: Sequence[Callable[[Sequence[str]], int]] = (export.main, ptq.main, exits.main)


@pytest.fixture(scope="module")
def config() -> str:
    """What Hydra stores of a run."""
    return OmegaConf.to_yaml(OmegaConf.structured(compose(["strategy=fedavg", "quant.bits=32"])))


@pytest.fixture
def run(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run, and beside it a module that leaves a trace where it is imported."""
    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(config)
    save_file(nn.Linear(2, 3).state_dict(), folder / MODEL)
    (folder / "summary.json").write_text('{"final_accuracy": 0.5}')
    (tmp_path / "intruder.py").write_text(CODE + NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def change(run: Path, key: str, value: Any) -> None:
    path = run / ".hydra" / "config.yaml"
    stored = yaml.safe_load(path.read_text())
    node, *names = stored, *key.split(".")
    for name in names[:-1]:
        node = node.setdefault(name, {})
    node[names[-1]] = value
    path.write_text(yaml.safe_dump(stored))


VALUES = ("intruder.Net", "intruder.py:Net", "intruder", "os.system", "{folder}/intruder.py:Net")


@pytest.mark.parametrize("key", [*TARGETS, "task._target_", "model.block._target_"])
def test_code_that_a_folder_names_is_not_imported(key: str, run: Path) -> None:
    for value in (value.format(folder=run.parent) for value in VALUES):
        change(run, key, value)
        with pytest.raises(ValueError, match="is no code of CutBit's own; --trust tak") as error:
            load_experiment(run)
        assert str(error.value).startswith(f"{run}: {key}={value}: ")
        assert not (run.parent / "intruder.ran").exists()


def test_commands_refuse_it_in_one_line_and_take_it_with_trust(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(run, "model._target_", "intruder.py:Net")
    for command in COMMANDS:
        assert command([str(run)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {run}: model._target_=intruder.py:Net: is no code of")
        assert not (run.parent / "intruder.ran").exists()
    assert isinstance(experiment.network(load_experiment(run, trust=True)), nn.Linear)
    assert (run.parent / "intruder.ran").exists()


def test_what_conf_names_is_ours() -> None:
    for key in TARGETS:
        assert len(ours()[key]) >= (1 if key == "task._target_" else 4), key
    assert ours()["task._target_"] == {None}  # tasks of ours have names
    for strategy in ours()["strategy._target_"]:
        assert strategy.startswith("strategies.")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.width", "${oc.env:HOME}", "model.width=.*: is resolved outside"),
        ("data.root", "${oc.env:SECRET,x}/a", "data.root=.*: is resolved outside"),
        ("model.width", "${hydra:runtime.cwd}", "is resolved outside"),
        ("model.width", "${oc.decode:${name}}", "is resolved outside"),
        ("model", {"_target_": "models.cnn.CNN", "${oc.env:HOME}": 1}, "is resolved outside"),
        ("model.width", "${model.width}", "model.width"),  # of itself
        ("seed", "${no.such}", "seed"),
        ("data.name", "../../up", "data.name='../../up': takes letters"),
        ("model._target_", ["os.system"], "is no code of"),
        ("model", "os.system", "it has no group model"),
        ("link", {"up": {"_target_": "os.system"}}, "is no code of"),
    ],
)
def test_nothing_is_resolved_from_outside(key: str, value: Any, message: str, run: Path) -> None:
    change(run, key, value)
    assert ptq.main([str(run)]) == 1
    with pytest.raises(Exception, match=message) as error:
        load_experiment(run)
    assert os.environ["HOME"] not in str(error.value).replace(str(run), "")


def test_our_own_references_are_resolved(run: Path) -> None:
    root = "${oc.env:CUTBIT_DATA,${oc.env:HOME,/tmp}/.cache/cutbit}"
    change(run, "data.root", root)
    change(run, "name", "${data.name}")
    assert load_experiment(run).name == "digits"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model: !!python/object/apply:os.system [touch intruder.ran]", "could not determine"),
        ("model: !!python/name:os.system", "could not determine"),
        ("model: &a [1]\nstrategy: *a", "refers to parts of itself"),
        ("model: " + "[" * 30 + "]" * 30, "more than 20 deep"),
        ("model: " + "x" * 1_000_001, "larger than any configuration"),
        ("", "it has no group model"),
        ("- 1", "it holds no keys"),
        ("model: [", "while parsing"),
        ("model: \udcff", "decode"),
        ("model: 3", "it has no group model"),
    ],
)
def test_a_file_that_is_no_configuration(text: str, reason: str, run: Path) -> None:
    path = run / ".hydra" / "config.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=f"config.yaml: is damaged: .*{reason}"):
        load_experiment(run)
    assert not (run.parent / "intruder.ran").exists()


@pytest.mark.parametrize("name", [".hydra/config.yaml", MODEL, "summary.json"])
def test_a_pipe_is_not_waited_for(name: str, run: Path) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(ValueError, match=f"{name} is missing"):
        load_experiment(run)


def test_initial_weights_are_not_read(run: Path) -> None:
    os.mkfifo(run / "pipe")
    change(run, "model.weights", str(run / "pipe"))
    change(run, "model.replace_head", True)
    assert load_experiment(run).network.weights is None


def test_results_are_not_written_through_a_link(run: Path) -> None:
    target = run.parent / "precious"
    target.write_text("mine")
    for name in ("ptq.json", "ptq.json.part"):
        (run / name).symlink_to(target)
    write_json(run / "ptq.json", {})
    assert target.read_text() == "mine"
    assert not (run / "ptq.json").is_symlink()


def says_int() -> int:
    raise AssertionError("is not called")


@pytest.mark.parametrize(
    "target",
    ["os.system", "os.popen", "shutil.rmtree", "builtins.eval", "subprocess.Popen", "torch.Tensor",
     "tests.app.test_untrusted.says_int", "torch.nn.functional.relu.__call__", "torch.nn"],
)  # fmt: skip
def test_only_networks_and_functions_are_called(target: str) -> None:
    with pytest.raises(ValueError, match=r"is not a torch\.nn\.Module|cannot be imported"):
        build(target, {"command": "touch ran", "path": "/nowhere"}, (1, 8, 8), 10, 0)


HOSTILE = (
    "!!python/object/apply:os.system [touch intruder.ran]", "intruder.Net", "intruder.py:Net",
    "${oc.env:HOME}", "*a", "&a [*a]", "{", "[[[[", "null", "~", "-1", "1e999", ".nan", "\"", "'",
    "99999999999999999999", "{_target_: intruder.Net}", "[intruder]", "../../..", "\x00", "\x1b[2J",
    "${model}", "${no}", "???", "<<", "true", "2026-11-29", "0x7fffffffffffffff", "%s", "/dev/zero",
)  # fmt: skip


def mutated(text: str, random: Random) -> bytes:
    """A configuration with up to three damages: values, lines, bytes."""
    lines = text.splitlines()
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        at = random.randrange(len(lines))
        match random.randrange(5):
            case 0 | 1:
                lines[at] = lines[at].partition(":")[0] + ": " + random.choice(HOSTILE)
            case 2:
                lines[at] = random.choice((" ", "  ", "- ")) + lines[at]
            case 3:
                lines.insert(at, random.choice(lines))
            case 4:
                del lines[at]
    data = bytearray("\n".join(lines).encode())
    if random.random() < 0.2:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [40, pytest.param(3000, marks=pytest.mark.long)])
def test_damaged_configurations_run_nothing(count: int, config: str, run: Path) -> None:
    """Each is read, or is one line that names what is wrong."""
    taken = 0
    for seed in range(count):
        text = mutated(config, Random(seed))
        (run / ".hydra" / "config.yaml").write_bytes(text)
        try:
            load_experiment(run)
            taken += 1
        except (ValueError, OSError, OmegaConfBaseException) as error:
            assert explain(error), (seed, text)
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {text.decode(errors='replace')}") from error
        assert not (run.parent / "intruder.ran").exists(), seed
    print(f"{taken} of {count} were read")
    assert 0 < taken < count
