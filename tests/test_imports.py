"""Who may import whom (DESIGN section 1), and that nothing heavy comes in by the back door."""

import ast
import json
import subprocess
import sys
from collections.abc import Sequence

import pytest
from conftest import ROOT

OURS = ("app", "data", "fleet", "models", "privacy", "quant", "strategies", "tracking")
LIBRARIES = {"flwr", "hydra", "omegaconf", "ray", "wandb"}
ABOVE = {"app", "strategies", "data", "tracking"}
FORBIDDEN = {
    "quant": {*LIBRARIES, *ABOVE, "privacy", "fleet"},
    "models": {*LIBRARIES, *ABOVE, "privacy", "fleet"},
    "privacy": {*LIBRARIES, *ABOVE, "fleet"},
    "fleet": {*LIBRARIES, *ABOVE, "torch", "quant", "models", "privacy"},
    "data": {*LIBRARIES, "app", "strategies", "tracking", "fleet", "quant", "models", "privacy"},
    "tracking": {*LIBRARIES, "torch", "app", "strategies", "data", "fleet", "quant", "models"},
    "strategies": {"hydra", "omegaconf", "ray", "wandb", "app"},
}
WANDB = {
    f"tracking/{name}.py"
    for name in ("wandb_settings", "wandb_run", "wandb_sink", "wandb_report", "sync", "dashboard")
}


def imported(folder: str) -> dict[str, set[str]]:
    """Top-level packages that each file of a folder imports, wherever in the file."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
        found[str(path.relative_to(ROOT))] = names
    return found


@pytest.mark.parametrize("folder", sorted(FORBIDDEN))
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    files = imported(folder)
    assert files
    for path, names in files.items():
        allowed = {"wandb"} if path in WANDB else set()
        assert not names & FORBIDDEN[folder] - allowed, path


def test_nothing_takes_a_helper_from_an_app() -> None:
    """The ServerApp, the ClientApp and the grids are started, and not imported from."""
    starters = {"app/engine.py", "app/jobs.py", "app/side_by_side.py"}
    for folder in OURS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module == "app.server":
                    raise AssertionError(name)
                if isinstance(node, ast.ImportFrom) and node.module == "app":
                    assert "server" not in {a.name for a in node.names} or name in starters, name


def test_what_flower_does_not_publish_is_used_in_one_file() -> None:
    published = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.simulation"}
    published |= {"flwr.serverapp.strategy"}
    found: dict[str, set[str]] = {}
    for folder in (*OURS, "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module == "flwr":
                    names = [f"flwr.{alias.name}" for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                hidden = {n for n in names if n.split(".")[0] == "flwr"} - published
                if hidden:
                    found[str(path.relative_to(ROOT))] = hidden
    assert list(found) == ["app/runtime.py"], found


def test_the_error_code_of_messages_is_flowers() -> None:
    from flwr.common.constant import ErrorCode

    from strategies.messages import CLIENT_RAISED

    assert CLIENT_RAISED == ErrorCode.CLIENT_APP_RAISED_EXCEPTION


def test_record_keys_are_named_in_one_file() -> None:
    keys = ("num-examples", "server-round", "partition-id", "train-loss")
    for folder in OURS:
        for path in (ROOT / folder).rglob("*.py"):
            strings = [
                node.value
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Constant) and node.value in keys
            ]
            # Flower itself names partition-id, in a node's configuration.
            named_by_flower = path.name in ("client.py", "worker.py")
            assert (
                not strings
                or path.name == "messages.py"
                or (named_by_flower and set(strings) == {"partition-id"})
            ), path


def test_the_file_below_all_folders_imports_none() -> None:
    for node in ast.walk(ast.parse((ROOT / "targets.py").read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert all(name.split(".")[0] in sys.stdlib_module_names for name in names)


WITH_TORCH = (
    ("strategies.oqfl", ("hydra", "ray", "wandb")),
    ("quant.layers", ("flwr", "hydra", "ray", "wandb")),
    ("quant.export", ("flwr", "hydra", "ray", "wandb", "onnx", "onnxruntime")),
    ("app.commands.export", ("ray", "wandb", "onnx", "onnxruntime", "onnxscript")),
    ("models.build", ("flwr", "hydra", "ray", "wandb")),
    ("app.client", ("wandb", "ray", "sklearn", "flwr_datasets", "websockets")),
    # A search brings Optuna, SuperNodes bring websockets, and nothing else does.
    ("app.jobs", ("optuna", "ray", "websockets", "cryptography.x509")),
)
WITHOUT = (
    ("fleet.selection", ("torch", "flwr", "hydra")),
    ("fleet.flights", ("torch", "flwr", "hydra")),
    ("fleet.service", ("torch", "flwr", "hydra")),
    ("tracking.record", ("torch", "flwr", "hydra")),
    ("app.config.help", ("optuna",)),
)
# Each module in a process of its own, which is forked from one that has imported torch or nothing.
FORKING = """
import importlib, json, os, sys
modules, begin = json.loads(sys.argv[1]), sys.argv[2:]
for name in begin:
    importlib.import_module(name)
for module, absent in modules:
    if not (child := os.fork()):
        importlib.import_module(module)
        print(module, *[name for name in absent if name in sys.modules], flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, module
"""


@pytest.mark.parametrize(("modules", "begin"), [(WITH_TORCH, ["torch"]), (WITHOUT, [])])
def test_importing_does_not_load(modules: Sequence[tuple[str, ...]], begin: list[str]) -> None:
    command = [sys.executable, "-c", FORKING, json.dumps(modules), *begin]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [module for module, _ in modules]
