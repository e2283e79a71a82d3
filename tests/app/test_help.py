"""What --help prints comes from the dataclasses; keys that went say what to use instead."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import ROOT, small

from app import help_page
from app.config import methods
from app.config.composition import compose
from app.config.help import help_text, keys_with_help
from app.config.retired import RETIRED
from app.config.schema import MODEL_HELP, known_keys

FOUND = ("content", "_content", "label_names")  # in files, not given


def test_every_key_is_listed_with_its_default_and_a_line() -> None:
    listed = keys_with_help()
    given = {key for key in known_keys() if not key.endswith(FOUND)}
    given -= {"strategy", "model"}
    of_methods = {
        f"strategy.{f.name}"
        for kind in methods.methods().values()
        for group in methods.strategy_groups(kind).values()
        for f in fields(group)
    }
    # Mappings are flattened to nothing in a schema without values.
    assert listed.keys() == given | of_methods | set(MODEL_HELP) | {"data.options", "sweep.over"}
    page = help_text()
    for key, text in listed.items():
        assert f"\n  {key} " in page or f"\n  {key}\n" in page
        assert text.split("] ", 1)[-1].strip(), key
    for key in given:
        value = known_keys()[key]
        default = json.dumps(value) if value is None or isinstance(value, bool) else value
        assert listed[key].startswith(f"[{default}] "), key
    assert max(len(line) for line in page.splitlines()) <= 100


def test_help_lists_every_choice() -> None:
    page = help_text()
    for path in (ROOT / "conf").glob("*/*.yaml"):
        assert path.stem in page


def test_help_is_made_once_and_then_needs_none_of_what_is_slow_to_import(tmp_path: Path) -> None:
    slow = ("ray", "wandb", "torch", "flwr", "hydra")
    code = (
        "import sys, main; sys.argv = ['main.py', '--help']; assert main.main() == 0\n"
        f"print([name for name in {slow} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    made, kept = (
        subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        ).stdout.rpartition("\n[")
        for _ in range(2)
    )
    assert made[0] + "\n" == kept[0] + "\n" == help_text()
    assert "'ray'" not in made[2] and "'wandb'" not in made[2]
    assert kept[2] == "]\n"


def test_help_is_made_anew_when_the_code_changes_and_where_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "cutbit").mkdir()
    (tmp_path / "cutbit" / "help-0123.txt").write_text("of other code")
    assert help_page.help_page() == help_text()
    (kept,) = (tmp_path / "cutbit").iterdir()
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "new.py").write_text("x = 1")
    before = help_page._digest()
    monkeypatch.setattr(help_page, "ROOT", tmp_path)
    after = help_page._digest()
    assert before in kept.name and after != before
    (tmp_path / "app" / "new.py").write_text("x = 2")
    assert help_page._digest() not in (before, after)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert help_page.help_page() == help_text()


@pytest.mark.parametrize("key", RETIRED)
def test_a_key_that_went_says_what_to_use(key: str) -> None:
    method = "strategy=binarized_split"
    with pytest.raises(ValueError, match=rf"^{key}: was removed; \S+") as caught:
        compose([method, f"{key}=1"])
    assert "\n" not in str(caught.value)


def test_keys_that_went_are_still_part_of_what_they_were_part_of() -> None:
    kept = {
        "fedavg": {"fleet.by_id"},
        "splitfed_v1": {"fleet.by_id", "link.alpha"},
        "deprune": {"fleet.by_id", "link.alpha", "prune.frozen"},
        "binarized_split": {
            "fleet.by_id", "link.alpha", "strategy.estimator", "strategy.scale", "privacy.attack",
        },
    }  # fmt: skip
    for method, keys in kept.items():
        identity = small(f"strategy={method}").identity
        assert {key: identity[key] for key in RETIRED if key in identity} == {
            key: RETIRED[key].value for key in RETIRED if key in keys
        }
