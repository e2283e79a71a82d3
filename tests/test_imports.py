"""Who may import whom (DESIGN section 1), and that nothing heavy comes in by the back door."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

OURS = ("app", "data", "fleet", "models", "privacy", "quant", "strategies", "tracking")
FORBIDDEN = {
    "quant": {
        "flwr",
        "hydra",
        "omegaconf",
        "ray",
        "wandb",
        "app",
        "strategies",
        "data",
        "tracking",
    },
    "models": {
        "flwr",
        "hydra",
        "omegaconf",
        "ray",
        "wandb",
        "app",
        "strategies",
        "data",
        "tracking",
    },
    "fleet": {"torch", "flwr", "hydra", "omegaconf", "ray", "wandb", "app", "strategies"},
    "strategies": {"hydra", "omegaconf", "ray", "wandb"},
    "tracking": {"torch", "flwr", "hydra", "omegaconf", "ray", "app", "strategies"},
    "data": {"flwr", "hydra", "omegaconf", "ray", "wandb", "app", "strategies"},
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
        allowed = {"wandb"} if path == "tracking/wandb_sink.py" else set()
        assert not names & FORBIDDEN[folder] - allowed, path


def test_strategies_know_the_app_by_its_messages_alone() -> None:
    for path in (ROOT / "strategies").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "app":
                names = {alias.name for alias in node.names}
                assert node.module == "strategies.messages" or names == {"messages"}, path.name


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
            named_by_flower = path.name in ("client.py", "engine.py")
            assert (
                not strings
                or path.name == "messages.py"
                or (named_by_flower and set(strings) == {"partition-id"})
            ), path


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("strategies.oqfl", ("hydra", "ray", "wandb")),
        ("quant.layers", ("flwr", "hydra", "ray", "wandb")),
        ("quant.export", ("flwr", "hydra", "ray", "wandb", "onnx", "onnxruntime")),
        ("app.commands.export", ("ray", "wandb", "onnx", "onnxruntime", "onnxscript")),
        ("models.build", ("flwr", "hydra", "ray", "wandb")),
        ("fleet.selection", ("torch", "flwr", "hydra")),
        ("tracking.record", ("torch", "flwr", "hydra")),
        ("app.client", ("wandb", "ray", "sklearn", "flwr_datasets")),
    ],
)
def test_importing_does_not_load(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*[m for m in {absent!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []
