"""`prunekit train`: what the user sees, exit codes, Ctrl-C and what follows it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from prunekit.cli.group import prunekit
from prunekit.trace import read
from prunekit.training.checkpoint import CHECKPOINT
from prunekit.training.results import RESULT

APP = """
import time
import torch
from torch.utils.data import DataLoader, TensorDataset
from prunekit import Application

SECONDS = 0.0

class Slow(TensorDataset):
    def __getitem__(self, index):
        time.sleep(SECONDS)
        return super().__getitem__(index)

def app(seed=0):
    torch.manual_seed(seed)
    points = torch.randn(64, 6)
    data = Slow(points, (points[:, :2] > 0).sum(1))
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(8, 3))
    own = torch.Generator().manual_seed(seed)
    training = DataLoader(data, 16, shuffle=True, generator=own)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Application(model, optimizer, training, DataLoader(data, 32), torch.nn.functional.cross_entropy)

def slow(seed=0):
    global SECONDS
    SECONDS = 0.003
    return app(seed)

def number():
    return 5

def needy(model):
    return model

def failing():
    raise ValueError("no data here")
"""
SCHEDULE = """\
version: 1
pruners:
  agp:
    class: AutomatedGradualPruner
    initial_sparsity: 0.25
    final_sparsity: 0.75
    weights: [0.weight, 3.weight]
policies:
  - pruner:
      instance_name: agp
    starting_epoch: 1
    ending_epoch: 4
"""
BY = "AutomatedGradualPruner 'agp' (prunekit-agp-pruner 0.1.0)"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with an application `tiny` and a schedule."""
    (tmp_path / "tiny.py").write_text(APP)
    (tmp_path / "agp.v1.yaml").write_text(SCHEDULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("tiny", None)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(prunekit, ["train", *arguments])


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "prunekit", "train", *arguments]
    # A test run that was itself started in the background of a script ignores Ctrl-C, and so would its children.
    options = {"stdout": subprocess.PIPE, "preexec_fn": _hear_interrupts, **options}
    return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, **options)


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def model(run_dir: str) -> list[torch.Tensor]:
    return list(torch.load(Path(run_dir) / CHECKPOINT, weights_only=True)["model"].values())


def same(one: str, other: str) -> bool:
    return all(torch.equal(a, b) for a, b in zip(model(one), model(other), strict=True))


# What is shown


def test_each_epoch_is_a_line_and_the_end_a_table() -> None:
    result = run("agp.v1.yaml", "--app", "tiny:app", "--run-dir", "run")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[:4]] == [f"epoch {epoch}/3" for epoch in range(4)]
    rows = {line.split("  ")[0]: line.split() for line in lines[5:]}
    assert rows["parameter"] == ["parameter", "shape", "dense", "non-zero", "sparsity", "by", "epochs"]
    assert rows["0.weight"] == ["0.weight", "8x6", "48", "12", "0.7500", *BY.split(), "1-3"]
    assert rows["3.weight"] == ["3.weight", "3x8", "24", "6", "0.7500", *BY.split(), "1-3"]
    assert rows["2 others"] == ["2", "others", "11", "11", "0.0000", "-"]
    assert rows["pruned (2)"] == ["pruned", "(2)", "72", "18", "0.7500"]
    assert rows["all (4)"] == ["all", "(4)", "83", "29", "0.6506"]
    assert lines[-5].startswith("dense accuracy: ")
    assert lines[-5].endswith("(epoch 0, the last before pruning)")
    assert lines[-4].startswith("pruned accuracy: ")
    assert lines[-3].startswith("best accuracy: ")
    assert lines[-3].endswith("(epoch 3, final: run/best.pt)")
    assert lines[-2].startswith("wall time: ")
    assert lines[-1] == "trace: run/trace.jsonl"


def test_the_result_is_left_for_machines_too() -> None:
    run("agp.v1.yaml", "--app", "tiny:app", "--run-dir", "run", "--seed", "4")
    data = json.loads(Path("run", RESULT).read_text())
    assert data["settings"] == {
        "schedule": "agp.v1.yaml",
        "app": "tiny:app",
        "epochs": 4,
        "seed": 4,
        "device": None,
        "trace_level": "info",
        "dense_baseline": False,
        "allow_plugins": None,
        "locked": None,
    }
    assert data["totals"]["all"] == {"parameters": 4, "dense": 83, "nonzero": 29, "sparsity": pytest.approx(54 / 83)}


def test_a_run_lies_in_runs_by_default() -> None:
    assert run("agp.v1.yaml", "--app", "tiny:app").exit_code == 0
    assert run("agp.v1.yaml", "--app", "tiny:app").exit_code == 0
    names = sorted(path.name for path in Path("runs").iterdir())
    assert [name.rsplit("-")[0] for name in names] == ["agp.v1", "agp.v1"]


def test_a_dense_twin_is_trained_where_it_is_asked_for() -> None:
    Path("agp.v1.yaml").write_text(SCHEDULE.replace("starting_epoch: 1", "starting_epoch: 0"))
    without = run("agp.v1.yaml", "--app", "tiny:app", "--run-dir", "without")
    assert "dense accuracy: n/a, pruning began at epoch 0; use --dense-baseline" in without.stdout
    with_twin = run("agp.v1.yaml", "--app", "tiny:app", "--run-dir", "with", "--dense-baseline")
    assert "dense twin, epoch 3/3  train loss " in with_twin.stdout
    assert with_twin.stderr == ""
    dense = json.loads(Path("with", RESULT).read_text())["dense"]
    assert dense["epoch"] is None
    assert f"dense accuracy: {dense['accuracy']:.2%} (a twin trained without pruning)" in with_twin.stdout
    assert same("without", "with")
    resumed = run("--resume", "with")
    assert resumed.stdout.splitlines()[-5] == with_twin.stdout.splitlines()[-5]
    assert all(int((tensor == 0).sum()) == 0 for tensor in model("with/dense"))


def test_warnings_are_shown() -> None:
    Path("agp.v1.yaml").write_text(SCHEDULE.replace("version: 1\n", ""))
    result = run("agp.v1.yaml", "--app", "tiny:app")
    assert result.stderr == "warning: agp.v1.yaml:1:1: no version is given; 1 is assumed\n"


def test_a_terminal_gets_a_bar(folder: Path) -> None:
    leader, follower = pty.openpty()
    process = start(
        "agp.v1.yaml", "--app", "tiny:slow", "--epochs", "2", stdout=follower, env={**os.environ, "TERM": "xterm"}
    )
    os.close(follower)
    shown = b""
    while chunk := _read(leader):
        shown += chunk
    os.close(leader)
    _, stderr = process.communicate()
    assert (process.returncode, stderr) == (0, "")
    text = shown.decode()
    assert "━" in text
    assert "4/4" in text
    assert "epoch 1/1  train loss" in text


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed
        return b""


# What is wrong


def test_every_problem_of_a_schedule_is_shown_and_nothing_is_trained() -> None:
    text = SCHEDULE.replace("final_sparsity: 0.75", "final_sparsity: 75").replace("0.weight", "0.wieght")
    Path("agp.v1.yaml").write_text(text.replace("    starting_epoch", "    freqency: 2\n    starting_epoch"))
    result = run("agp.v1.yaml", "--app", "tiny:app", "--run-dir", "run")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "agp.v1.yaml:6:21: pruners.agp.final_sparsity: must be less than or equal to 1, got 75",
        "agp.v1.yaml:7:15: pruners.agp.weights[0]: '0.wieght' selects nothing in the model; "
        "nearest are '0.weight', '3.weight'",
        "agp.v1.yaml:11:5: policies[0].freqency: unknown key 'freqency'; did you mean 'frequency'?",
    ]
    assert not Path("run").exists()


def test_problems_are_all_shown_where_no_policy_can_be_read() -> None:
    text = SCHEDULE.replace("final_sparsity: 0.75", "final_sparsity: 75")
    Path("agp.v1.yaml").write_text(text.replace("policies:", "polices:"))
    result = run("agp.v1.yaml", "--app", "tiny:app")
    assert result.exit_code == 1
    assert [line.split(": ")[1] for line in result.stderr.splitlines()][1:] == ["pruners.agp.final_sparsity", "polices"]
    Path("agp.v1.yaml").write_text("version: 1\npolicies: []")
    result = run("agp.v1.yaml", "--app", "tiny:app")
    message = "error: the schedule has no policy that says how long to train: give --epochs\n"
    assert (result.exit_code, result.stderr) == (2, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--app", "tinny:app"], "no module 'tinny'; did you mean 'tiny'? known are tiny"),
        (
            ["--app", "tiny:ap"],
            "module 'tiny' has no function 'ap'; did you mean 'app'? known are app, failing, needy, ",
        ),
        (["--app", "tiny:number"], "'tiny:number' must return prunekit.Application, got 5"),
        (
            ["--app", "tiny:needy"],
            "'tiny:needy' can't be called with no arguments: missing a required argument: 'model'",
        ),
        (["--app", "tiny:failing"], "'tiny:failing' failed: ValueError: no data here"),
        (["--app", "tiny:SECONDS"], "'tiny:SECONDS' is no function but 0.0"),
        (["--app", "tiny"], "expected MODULE:FUNCTION, got 'tiny'"),
        (["--app", "tiny:app", "--device", "gpu"], "--device 'gpu' can't be used"),
        ([], "--app is missing"),
    ],
)
def test_a_wrong_command_says_what_is_there(arguments: list[str], message: str) -> None:
    result = run("agp.v1.yaml", *arguments, "--run-dir", "run")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("run").exists()


def test_a_module_in_a_package_is_found_from_the_current_directory(folder: Path) -> None:
    (folder / "shelf").mkdir()
    (folder / "tiny.py").rename(folder / "shelf" / "tiny.py")
    assert run("agp.v1.yaml", "--app", "shelf.tiny:app", "--epochs", "2").exit_code == 0
    result = run("agp.v1.yaml", "--app", "shelf.tinny:app")
    assert "no module 'shelf.tinny'; did you mean 'shelf.tiny'? known are shelf.tiny" in result.stderr


def test_a_module_that_fails_is_no_missing_module(folder: Path) -> None:
    (folder / "tiny.py").write_text("import no_such_package")
    result = run("agp.v1.yaml", "--app", "tiny:app")
    assert result.exit_code == 2
    assert "module 'tiny' can't be imported: ModuleNotFoundError: No module named 'no_such_package'" in result.stderr


def test_a_missing_schedule_is_an_error() -> None:
    result = run("nowhere.yaml", "--app", "tiny:app")
    assert result.exit_code == 2
    assert "does not exist" in result.stderr


# Ctrl-C


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_continue_and_does_so_bit_for_bit(stop: signal.Signals) -> None:
    process = start("agp.v1.yaml", "--app", "tiny:slow", "--run-dir", "stopped")
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith("epoch 0/3")
    process.send_signal(stop)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    said = stderr.splitlines()
    assert said[0].startswith("interrupted in epoch ")
    assert said[0].endswith("of 4 epochs are complete")
    assert said[1:] == ["read its trace: prunekit trace stopped", "continue it: prunekit train --resume stopped"]
    *_, last = read("stopped")
    assert last["event"] == "training interrupted"
    assert "epoch" in last

    assert run("agp.v1.yaml", "--app", "tiny:app", "--run-dir", "straight").exit_code == 0
    resumed = run("--resume", "stopped")
    assert resumed.exit_code == 0
    assert "epoch 0/3" not in resumed.stdout
    assert same("straight", "stopped")


def test_a_run_can_be_made_longer() -> None:
    assert run("agp.v1.yaml", "--app", "tiny:app", "--run-dir", "run", "--epochs", "2").exit_code == 0
    assert run("--resume", "run", "--epochs", "4").exit_code == 0
    assert run("agp.v1.yaml", "--app", "tiny:app", "--run-dir", "straight").exit_code == 0
    assert same("run", "straight")


def test_what_can_not_be_resumed_is_refused() -> None:
    assert run("agp.v1.yaml", "--app", "tiny:app", "--run-dir", "run").exit_code == 0
    again = run("agp.v1.yaml", "--app", "tiny:app", "--run-dir", "run")
    assert (again.exit_code, again.stderr) == (
        1,
        "error: 'run' already holds a run; resume it or choose another folder\n",
    )
    both = run("--resume", "run", "--run-dir", "other")
    assert (both.exit_code, both.stderr) == (2, "error: --resume goes on in its own folder: give no --run-dir\n")
    empty = run("--resume", ".")
    assert (empty.exit_code, empty.stderr) == (1, "error: no run in '.': there is no checkpoint.pt\n")
    Path("agp.v1.yaml").write_text(SCHEDULE.replace("final_sparsity: 0.75", "final_sparsity: 0.80"))
    other = run("agp.v1.yaml", "--resume", "run")
    assert other.exit_code == 1
    assert "saved under another schedule" in other.stderr
    assert "+    final_sparsity: 0.8" in other.stderr


# Shorter runs of long schedules


def test_scale_epochs_scales_every_window_and_the_run_with_it() -> None:
    long = SCHEDULE.replace("starting_epoch: 1", "starting_epoch: 10").replace("ending_epoch: 4", "ending_epoch: 40")
    Path("long.yaml").write_text(long)
    scaled = run("long.yaml", "--app", "tiny:app", "--scale-epochs", "0.1", "--run-dir", "scaled")
    assert scaled.exit_code == 0, scaled.stderr
    assert run("agp.v1.yaml", "--app", "tiny:app", "--run-dir", "plain").exit_code == 0
    assert same("scaled", "plain")


def test_the_length_of_a_run_may_be_given_by_steps() -> None:
    """The application has four mini-batches in an epoch: the last step, 9, is in epoch 2."""
    steps = SCHEDULE.replace("starting_epoch: 1", "starting_step: 1").replace("ending_epoch: 4", "ending_step: 10", 1)
    Path("steps.yaml").write_text(steps)
    result = run("steps.yaml", "--app", "tiny:app", "--run-dir", "steps")
    assert result.exit_code == 0, result.stderr
    assert json.loads(Path("steps", RESULT).read_text())["settings"]["epochs"] == 3


def test_scale_epochs_says_that_learning_rate_schedulers_keep_their_arguments() -> None:
    rates = "\nlr_schedulers:\n  lr: {class: StepLR, step_size: 30}\n"
    policy = "  - lr_scheduler: {instance_name: lr}\n    starting_epoch: 0\n    ending_epoch: 8\n"
    Path("rates.yaml").write_text(SCHEDULE + policy + rates)
    result = run("rates.yaml", "--app", "tiny:app", "--scale-epochs", "0.5", "--run-dir", "run")
    assert result.exit_code == 0, result.stderr
    assert "epochs scaled by 0.5; the arguments of StepLR are as written" in result.stderr


def test_a_scaled_run_is_resumed_as_it_was_scaled() -> None:
    assert run("agp.v1.yaml", "--app", "tiny:app", "--scale-epochs", "2", "--run-dir", "run").exit_code == 0
    refused = run("--resume", "run", "--scale-epochs", "2")
    expected = "error: --resume goes on with the schedule as it was scaled: give no --scale-epochs\n"
    assert (refused.exit_code, refused.stderr) == (2, expected)
    assert run("--resume", "run", "--epochs", "9").exit_code == 0


@pytest.mark.parametrize("factor", ["0", "-1"])
def test_a_factor_that_is_not_positive_is_refused(factor: str) -> None:
    assert run("agp.v1.yaml", "--app", "tiny:app", f"--scale-epochs={factor}").exit_code == 2
