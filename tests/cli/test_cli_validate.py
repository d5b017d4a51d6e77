"""`prunekit validate`: all problems at once, for people and for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from prunekit.cli.group import prunekit

APP = """
import torch
from prunekit import Application

def app():
    model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    return Application(model, torch.optim.SGD(model.parameters(), lr=0.1), None, None, None)
"""
GOOD = """\
version: 1
pruners:
  agp: {class: AutomatedGradualPruner, initial_sparsity: 0.25, final_sparsity: 0.75, weights: 0.weight}
policies:
  - pruner: {instance_name: agp}
    epochs: [2, 4]
"""
BAD = """\
pruners:
  agp: {class: AutomatedGradualPruner, initial_sparsity: 0.25, final_sparsity: 2, weights: 0.weight}
  other: {class: AutomatedPruner}
  unused: {class: AutomatedGradualPruner, initial_sparsity: 0.25, final_sparsity: 0.5, weights: 0.weight}
policies:
  - pruner: {instance_name: agp}
    epochs: [2, 4]
    freqency: 2
  - pruner: {instance_name: other}
    epochs: [0]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "small.py").write_text(APP)
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(BAD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("small", None)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(prunekit, ["validate", *arguments])


def test_a_good_schedule_is_said_to_be_good() -> None:
    result = run("good.yaml", "--app", "small:app")
    assert (result.exit_code, result.output) == (0, "no problems in 1 component and 1 policy\n")


def test_without_a_model_the_output_says_what_was_not_checked() -> None:
    result = run("good.yaml")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "no problems in 1 component and 1 policy",
        "without --app nothing that depends on the model was checked",
    ]


def test_all_problems_are_shown_at_once_in_the_order_of_the_file() -> None:
    result = run("bad.yaml", "--app", "small:app")
    assert result.exit_code == 1
    *lines, total = result.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "bad.yaml:1:1",
        "bad.yaml:2:80",
        "bad.yaml:3:18",
        "bad.yaml:4:11",
        "bad.yaml:8:5",
    ]
    assert "no pruner is registered as 'AutomatedPruner'; did you mean 'AutomatedGradualPruner'?" in lines[2]
    assert lines[3] == "bad.yaml:4:11: pruners.unused: no policy uses the pruner 'unused' (warning)"
    assert total == "3 errors and 2 warnings"


def test_a_model_shows_what_is_wrong_with_names(folder: Path) -> None:
    (folder / "good.yaml").write_text(GOOD.replace("weights: 0.weight", "weights: 0.wieght"))
    assert run("good.yaml").exit_code == 0
    result = run("good.yaml", "--app", "small:app")
    assert result.exit_code == 1
    assert "good.yaml:3:" in result.stdout
    assert "'0.weight'" in result.stdout


def test_the_length_of_a_run_shows_policies_that_never_act() -> None:
    assert run("good.yaml", "--epochs", "3").exit_code == 0
    result = run("good.yaml", "--epochs", "2")
    assert result.exit_code == 1
    assert "never acts: its first epoch is 2, and a run of 2 ends with 1" in result.stdout


def test_json_has_one_object_a_problem() -> None:
    result = run("bad.yaml", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found[1] == {
        "file": "bad.yaml",
        "line": 2,
        "column": 80,
        "path": "pruners.agp.final_sparsity",
        "message": "must be less than or equal to 1, got 2",
        "severity": "error",
    }
    assert [entry["severity"] for entry in found] == ["warning", "error", "error", "warning", "error"]
    assert result.stderr == "without --app nothing that depends on the model was checked\n"
    assert json.loads(run("good.yaml", "--json", "--app", "small:app").stdout) == []


def test_what_is_no_yaml_is_a_problem_like_any_other(folder: Path) -> None:
    (folder / "bad.yaml").write_text("policies: [")
    result = run("bad.yaml")
    assert result.exit_code == 1
    assert result.stdout.startswith("bad.yaml:1:12: not YAML: ")
    assert "1 error\n" in result.stdout


def test_a_missing_file_is_a_wrong_command() -> None:
    result = run("nowhere.yaml")
    assert result.exit_code == 2
    assert "does not exist" in result.stderr
