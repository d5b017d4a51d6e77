"""`prunekit train` with an application that is wrong: one line, no traceback, nothing left, no advice to resume."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from prunekit.cli.group import prunekit
from prunekit.trace import read
from prunekit.training.checkpoint import CHECKPOINT

APP = """\
import torch
from torch.nn.functional import cross_entropy
from prunekit import Application


def helper(scores):
    return scores / nothing


def app():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0])) for _ in range(3)]
    application = Application(model, optimizer, batches, batches, cross_entropy)
    return changed(application)


def changed(app):
"""
MORE = """

class Unsized:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Refuses(torch.autograd.Function):
    @staticmethod
    def forward(context, loss):
        return loss.clone()

    @staticmethod
    def backward(context, gradient):
        raise ValueError("no way back")
"""
SCHEDULE = """\
version: 1
pruners:
  half: {class: SparsityLevelParameterPruner, levels: {0.weight: 0.5}}
policies:
  - pruner: {instance_name: half}
    starting_epoch: 0
    ending_epoch: 2
"""
WRONG = {
    "app.model = 5": "tiny.py:10: {app}: model: must be a torch.nn.Module, got 5",
    "app.model.to('meta')": "tiny.py:10: {app}: model: '0.weight' is on the device 'meta': it has no values yet",
    "app.model[0] = torch.nn.Linear(5, 8)": (
        "tiny.py:10: {app}: model: RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x6 and 5x8)\n{shows}"
    ),
    "app.optimizer = 'adam'": (
        "tiny.py:10: {app}: optimizer: must be a torch.optim.Optimizer, or a sequence or a mapping of them, got 'adam'"
    ),
    "app.optimizer = []": (
        "tiny.py:10: {app}: optimizer: there is none; give an optimizer, a sequence or a mapping of them"
    ),
    "app.optimizer = [app.optimizer, None]": (
        "tiny.py:10: {app}: optimizer: '1' must be a torch.optim.Optimizer, or a sequence or a mapping of them, "
        "got None"
    ),
    "import copy; app.model = copy.deepcopy(app.model)": (
        "tiny.py:10: {app}: optimizer: holds none of the model's parameters: it was made for another model, "
        "or for a copy"
    ),
    "app.optimizer = torch.optim.LBFGS(app.model.parameters())": (
        "tiny.py:10: {app}: optimizer: needs a closure (LBFGS); call such an optimizer in a loop of your own"
    ),
    "app.train_loader = 7": "tiny.py:10: {app}: train_loader: must give batches, such as a DataLoader, got 7",
    "app.test_loader = None": "tiny.py:10: {app}: test_loader: must give batches, such as a DataLoader, got None",
    "app.train_loader = []": "tiny.py:10: {app}: train_loader: is empty: there is nothing to train on",
    "app.train_loader = Unsized(app.train_loader)": (
        "tiny.py:10: {app}: train_loader: must have a length, by which an epoch is divided "
        "(TypeError: object of type 'Unsized' has no len())"
    ),
    "app.test_loader = (batch for batch in [])": (
        "tiny.py:10: {app}: test_loader: must give its batches in every epoch, and a generator gives them once"
    ),
    "app.loss = lambda outputs, targets: Refuses.apply(outputs.sum())": (
        "tiny.py:39: {app}: loss: ValueError: no way back\n{shows}"
    ),
    "app.optimizer.register_step_pre_hook(lambda *_: nothing)": (
        "tiny.py:20: {app}: optimizer: NameError: name 'nothing' is not defined\n{shows}"
    ),
    "app.train_loader = [{'x': 1, 'y': 2}]": (
        "tiny.py:10: {app}: train_loader: gives a dict of 'x', 'y', and loss takes pairs (inputs, targets); "
        "give step(model, batch) in its place"
    ),
    "app.train_loader = [(1, 2, 3)]": (
        "tiny.py:10: {app}: train_loader: gives a tuple of 3, and loss takes pairs (inputs, targets); "
        "give step(model, batch) in its place"
    ),
    "app.train_loader = [torch.ones(2, 6)]": (
        "tiny.py:10: {app}: train_loader: gives a tensor of shape (2, 6) (float32), and loss takes pairs "
        "(inputs, targets); give step(model, batch) in its place"
    ),
    "app.loss = None": (
        "tiny.py:10: {app}: loss: there is none; give loss(outputs, targets) or step(model, batch)"
    ),
    "app.loss = 'mse'": "tiny.py:10: {app}: loss: must be a function, got 'mse'",
    "app.step = lambda model, batch: 0": (
        "tiny.py:20: {app}: step: is given beside loss; give loss(outputs, targets) or step(model, batch), one of them"
    ),
    "app.loss = lambda outputs, targets: outputs": (
        "tiny.py:20: {app}: loss: must give a scalar tensor, got a tensor of shape (4, 3) (float32)"
    ),
    "app.loss = lambda outputs, targets: 1.5": "tiny.py:20: {app}: loss: must give a scalar tensor, got 1.5",
    "app.loss = lambda outputs, targets: outputs.argmax()": (
        "tiny.py:20: {app}: loss: must give a scalar tensor, got a tensor of shape () (int64)"
    ),
    "app.loss = lambda outputs, targets: outputs.detach().sum()": (
        "tiny.py:20: {app}: loss: has no gradient: it does not depend on any parameter that is trained, "
        "or was detached"
    ),
    "app.loss = lambda outputs, targets: outputs.sum() * float('nan')": (
        "tiny.py:20: {app}: loss: is nan in the first mini-batch"
    ),
    "app.loss = lambda outputs, targets: helper(outputs)": (
        "tiny.py:7: {app}: loss: NameError: name 'nothing' is not defined\n{shows}"
    ),
    "app.loss = lambda outputs: outputs.sum()": (
        "tiny.py:10: {app}: loss: TypeError: changed.<locals>.<lambda>() takes 1 positional argument but 2 were given"
        "\n{shows}"
    ),
    "app.loss, app.step = None, lambda model, batch: None": (
        "tiny.py:20: {app}: step: must give a scalar tensor, or scalar tensors by name, got None"
    ),
    "app.loss, app.step = None, lambda model, batch: {'a': model(batch[0])}": (
        "tiny.py:20: {app}: step: must give a scalar tensor, got a tensor of shape (4, 3) (float32) as 'a'"
    ),
    "app.loss, app.step = None, lambda model, batch: {'a': model(batch[0]).sum(), 'b': 0}": (
        "tiny.py:20: {app}: step: must give a scalar tensor, got 0 as 'b'"
    ),
    "app.loss, app.step = None, lambda model, batch: batch['x']": (
        "tiny.py:20: {app}: step: TypeError: tuple indices must be integers or slices, not str\n{shows}"
    ),
    "app.optimizer, app.loss, app.step = {'g': app.optimizer}, None, lambda m, batch: {'d': m(batch[0]).sum()}": (
        "tiny.py:20: {app}: step: gives losses ['d']; there must be one for each of the optimizers ['g']"
    ),
    "app.accumulate = 0": "tiny.py:10: {app}: accumulate: must be a number of mini-batches, from 1, got 0",
    "app.accumulate = 2.0": "tiny.py:10: {app}: accumulate: must be a number of mini-batches, from 1, got 2.0",
    "app.autocast = 'bf16'": (
        "tiny.py:10: {app}: autocast: must be a floating torch.dtype, such as torch.bfloat16, got 'bf16'"
    ),
    "app.clip_norm = 0": "tiny.py:10: {app}: clip_norm: must be a number above 0, got 0",
    "app.ema_decay = 1": "tiny.py:10: {app}: ema_decay: must be a number from 0 to below 1, got 1",
}  # fmt: skip
"""What is changed in an application that is right (line 20 of its module) -> what is said."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "half.yaml").write_text(SCHEDULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("PRUNEKIT_TRACEBACK", raising=False)
    yield tmp_path
    sys.modules.pop("tiny", None)


def run(change: str, *arguments: str) -> Result:
    sys.modules.pop("tiny", None)
    Path("tiny.py").write_text(f"{APP}    {change}\n    return app\n{MORE}")
    return CliRunner().invoke(prunekit, ["train", "half.yaml", "--app", "tiny:app", "--run-dir", "run", *arguments])


def expected(message: str) -> str:
    return "error: " + message.format(app="application 'tiny:app'", shows=SHOWS) + "\n"


SHOWS = "its traceback: PRUNEKIT_TRACEBACK=1 shows it"


def test_the_application_that_is_changed_is_right() -> None:
    result = run("pass")
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize("change", WRONG)
def test_a_wrong_application_is_told_in_one_line_and_leaves_nothing(change: str) -> None:
    result = run(change)
    assert (result.exit_code, result.stderr) == (1, expected(WRONG[change]))
    assert not Path("run").exists()


def test_a_folder_that_was_there_keeps_what_was_in_it() -> None:
    Path("run").mkdir()
    Path("run", "notes.txt").write_text("mine")
    assert run("app.train_loader = [1]").exit_code == 1
    assert [path.name for path in Path("run").iterdir()] == ["notes.txt"]
    assert run("pass").exit_code == 0


def test_all_of_it_is_shown_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_TRACEBACK", "1")
    result = run("app.loss = lambda outputs, targets: helper(outputs)")
    lines = result.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "error: tiny.py:7: application 'tiny:app': loss: NameError: name 'nothing' is not defined"


FAILS_LATER = """
class Loader(list):
    number = 0
    def __iter__(self):
        for batch in super().__iter__():
            self.number += 1
            if self.number > {number}:
                raise OSError("the disk is gone")
            yield batch

old = changed
def changed(app):
    app.train_loader = Loader(app.train_loader)
    return app
"""


@pytest.mark.parametrize(("number", "epoch"), [(1, "0"), (5, "1")])
def test_what_fails_after_the_first_step_leaves_a_trace_that_holds_the_traceback(number: int, epoch: str) -> None:
    result = run("return app\n" + FAILS_LATER.format(number=number) + "def unused():")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: tiny.py:28: application 'tiny:app': train_loader: OSError: the disk is gone\n"
        "its traceback: prunekit trace run --level error\n"
    )
    *_, last = read("run")
    assert (last["event"], last["epoch"], last["error"]) == ("training failed", int(epoch), "OSError: the disk is gone")
    assert last["exception"].endswith("raised in the application's train_loader")
    shown = CliRunner().invoke(prunekit, ["trace", "run", "--level", "error"])
    assert "Traceback (most recent call last):" in shown.stdout
    assert 'raise OSError("the disk is gone")' in shown.stdout


def test_a_process_of_a_loader_tells_the_line_that_failed_in_it() -> None:
    change = """class Data(list):
        def __getitem__(self, index):
            raise ValueError("no such image")
    app.train_loader = torch.utils.data.DataLoader(Data([1, 2]), num_workers=1)"""
    result = run(change)
    assert result.stderr == expected("tiny.py:22: {app}: train_loader: ValueError: no such image\n{shows}")


def test_the_failure_of_a_plugin_is_no_failure_of_the_application() -> None:
    from prunekit import hookimpl
    from prunekit.training.train import train

    class Failing:
        @hookimpl
        def on_minibatch_begin(self) -> None:
            raise ValueError("oh")

    Path("tiny.py").write_text(f"{APP}    return app\n")
    sys.path.insert(0, str(Path.cwd()))
    import tiny  # type: ignore[import-not-found]

    with pytest.raises(ValueError, match="oh") as caught:
        train(tiny.app(), "half.yaml", 1, run_dir="run", listeners=[Failing()])
    assert len(caught.value.__notes__) == 1
    assert Path("run", CHECKPOINT).exists()


def test_parts_and_metrics_and_the_best_are_shown() -> None:
    result = run(
        "app.loss, app.metrics = None, lambda model, batch: {'f1': 0.25}\n"
        "    app.step = lambda model, batch: {'a': model(batch[0]).square().mean(), 'b': model(batch[0]).abs().mean()}"
    )
    assert (result.exit_code, result.stderr) == (0, "")
    first, *_ = result.stdout.splitlines()
    assert re.sub(r"\d+\.\d+", "N", first) == (
        "epoch 0/1  train loss N (a N, b N)  loss N (a N, b N)  f1 N  lr N  sparsity N  N s"
    )
    data = json.loads(Path("run", "result.json").read_text())
    assert set(data["epochs"][0]["parts"]) == {"a", "b"}
    assert data["epochs"][0]["metrics"] == {"f1": 0.25}
    assert data["best"] == {**data["best"], "epoch": 1, "stage": "final", "path": "run/best.pt"}
    assert f"best loss: {data['best']['loss']:.4f} (epoch 1, final: run/best.pt)" in result.stdout


def test_a_run_that_ends_before_its_windows_says_so() -> None:
    result = run("pass", "--epochs", "1")
    last = [line for line in result.stdout.splitlines() if line.startswith("pruned accuracy")]
    assert last[0].endswith(" (partial: training has ended before a window has)")
