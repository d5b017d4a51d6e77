"""`prunekit train --masks-from RUN`: another run's masks, enforced under another schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from helpers import pruning, window
from torch import Tensor

from prunekit import StateError, train
from prunekit.cli.group import prunekit
from prunekit.schedule.yaml_source import dump
from prunekit.testing import application
from prunekit.trace import read
from prunekit.training.checkpoint import CHECKPOINT, load_checkpoint

APP = "prunekit.testing:application"
FIRST, SECOND = pruning(levels={"fc1.weight": 0.5}), pruning(when=window(1, 2), levels={"fc2.weight": 0.25})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with two schedules, and a run under the first."""
    monkeypatch.chdir(tmp_path)
    Path("first.yaml").write_text(dump(FIRST))
    Path("second.yaml").write_text(dump(SECOND))
    train(application(), FIRST, 1, run_dir="first")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(prunekit, ["train", *arguments])


def masks(run_dir: str) -> Mapping[str, Tensor]:
    return {name: saved["pruned"] for name, saved in load_checkpoint(run_dir)["scheduler"]["masks"].items()}


def test_masks_alone_are_taken_and_enforced():
    result = run("second.yaml", "--app", APP, "--masks-from", "first", "--run-dir", "second", "--seed", "3")
    assert (result.exit_code, result.stderr) == (0, "")
    weights = load_checkpoint("second")["model"]
    assert masks("second").keys() == {"fc1.weight", "fc2.weight"}
    assert torch.equal(masks("second")["fc1.weight"], masks("first")["fc1.weight"])
    assert torch.equal(weights["fc1.weight"] != 0, masks("first")["fc1.weight"])
    (line,) = [line for line in read("second") if line["event"] == "masks taken"]
    assert line["sparsity"] == {"fc1.weight": [0.0, 0.5]}
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("fc1.weight")]
    assert row.split()[-5:] == ["0.5000", "take_masks", "(prunekit", "0.1.0)", "0"]


def test_a_run_that_took_masks_is_resumed_with_them():
    run("second.yaml", "--app", APP, "--masks-from", "first", "--run-dir", "second", "--epochs", "2")
    assert run("--resume", "second", "--epochs", "3").exit_code == 0
    assert torch.equal(masks("second")["fc1.weight"], masks("first")["fc1.weight"])


def test_the_dense_twin_takes_none():
    run("second.yaml", "--app", APP, "--masks-from", "first", "--run-dir", "second", "--dense-baseline")
    assert (load_checkpoint("second/dense")["model"]["fc1.weight"] != 0).all()


def test_a_run_that_is_resumed_has_its_own():
    result = run("--resume", "first", "--masks-from", "first")
    message = "error: --resume goes on with the masks of its checkpoint: give no --masks-from\n"
    assert (result.exit_code, result.stderr) == (2, message)
    with pytest.raises(StateError, match="give no masks_from"):
        train(application(), FIRST, 2, run_dir="first", resume=True, masks_from="first")


def unfitting(state: dict[str, Any]) -> None:
    state["scheduler"]["masks"]["fc9.weight"] = state["scheduler"]["masks"].pop("fc1.weight")


def unpruned(state: dict[str, Any]) -> None:
    state["scheduler"]["masks"] = {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unfitting, "the model has no parameter 'fc9.weight'; did you mean 'fc2.weight'?"),
        (unpruned, "there is nothing to take from a scheduler's state: no mask has a zero in it"),
    ],
)
def test_masks_that_do_not_fit_are_refused_before_anything_is_written(change, message):
    state = load_checkpoint("first")
    change(state)
    torch.save(state, Path("first", CHECKPOINT))
    result = run("second.yaml", "--app", APP, "--masks-from", "first", "--run-dir", "second")
    assert result.exit_code == 1
    assert message in result.stderr
    assert not Path("second").exists()


def test_a_folder_that_holds_no_run_is_refused_before_anything_is_written():
    Path("empty").mkdir()
    result = run("second.yaml", "--app", APP, "--masks-from", "empty", "--run-dir", "second")
    assert (result.exit_code, result.stderr) == (1, "error: no run in 'empty': there is no checkpoint.pt\n")
    assert not Path("second").exists()
