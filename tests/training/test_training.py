"""`prunekit.training`: what a run gives, leaves behind, and how it goes on after a stop."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from helpers import Waits, without_listeners
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, Dataset

from prunekit import PrunekitError, Schedule, ScheduleError, StateError
from prunekit.plugins.lock import LOCK
from prunekit.trace import read
from prunekit.training.application import Application
from prunekit.training.checkpoint import BEST, CHECKPOINT, load_checkpoint, seed_everything
from prunekit.training.evaluation import evaluate
from prunekit.training.loop import TrainingInterrupted
from prunekit.training.results import RESULT, Baseline, Change, MinibatchResult
from prunekit.training.train import default_epochs, dense_schedule, train


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Points of three classes, with noise from numpy's and Python's global generators."""

    def __init__(self, size: int, noise: float = 0.1) -> None:
        self.noise = noise
        self.points = torch.randn(size, 6, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        point = self.points[index]
        return point + self.noise * (numpy.random.randn() + random.random()), (point[:2] > 0).sum()


def application(seed: int = 0, size: int = 64, loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy) -> Application:
    """Dropout, momentum, and a loader with a generator of its own: all that a resumed run could get wrong."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    own = torch.Generator().manual_seed(seed)
    training = DataLoader(Noisy(size), 16, shuffle=True, generator=own)
    return Application(model, optimizer, training, DataLoader(Noisy(32, noise=0), 16), loss)


def agp(start: int = 1, end: int = 6) -> dict[str, Any]:
    """AGP on one layer, and a learning rate that falls each epoch."""
    keys = {"initial_sparsity": 0.25, "final_sparsity": 0.75, "weights": ["0.weight"]}
    return {
        "version": 1,
        "pruners": {"agp": {"class": "AutomatedGradualPruner", **keys}},
        "lr_schedulers": {"lr": {"class": "ExponentialLR", "gamma": 0.8}},
        "policies": [
            {"pruner": {"instance_name": "agp"}, "starting_epoch": start, "ending_epoch": end},
            {"lr_scheduler": {"instance_name": "lr"}, "starting_epoch": 0, "ending_epoch": 200},
        ],
    }


def stop_at(epoch: int, minibatch: int) -> Callable[[MinibatchResult], None]:
    def stop(result: MinibatchResult) -> None:
        if (result.epoch, result.minibatch) == (epoch, minibatch):
            raise KeyboardInterrupt

    return stop


def everything(run: Application) -> list[Tensor]:
    """Weights and momenta."""
    momenta = [state["momentum_buffer"] for state in run.optimizer.state.values()]
    return [*run.model.state_dict().values(), *momenta]


def assert_same(one: Application, other: Application) -> None:
    pairs = zip(everything(one), everything(other), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


# What a run gives


def test_zeros_are_counted_in_what_the_forward_pass_uses() -> None:
    run, schedule = application(), agp(0, 2)
    # Of 2 bits WRPN leaves -1, 0 and 1: what is nearer to 0 than to them is 0, though the float weight is not.
    schedule["quantizers"] = {"wrpn": {"class": "WRPNQuantizer", "bits_weights": 2}}
    schedule["policies"].append({"quantizer": {"instance_name": "wrpn"}, "epochs": [1]})
    result = train(run, schedule, 2, seed=0)
    floats = dict(run.model.named_parameters())
    assert int(floats["0.weight"].count_nonzero()) == 12
    nonzero = {p.name: p.nonzero for p in result.parameters}
    expected = int((floats["0.weight"].abs() > 0.5).sum())
    assert nonzero["0.weight"] == expected < 12
    assert nonzero["3.weight"] == int((floats["3.weight"].abs() > 0.5).sum()) < 24
    assert sum(nonzero.values()) == round((1 - result.epochs[-1].sparsity) * sum(p.dense for p in result.parameters))


def test_the_result_counts_zeros_in_the_tensors_and_says_by_whose_hand_they_came() -> None:
    run = application()
    result = train(run, agp(1, 6), 6, seed=0)
    weight, *others = result.parameters
    assert (weight.name, weight.shape, weight.dense) == ("0.weight", (8, 6), 48)
    assert weight.nonzero == int(run.model[0].weight.count_nonzero()) == 12
    assert weight.sparsity == 0.75
    assert weight.changes == (
        Change("AutomatedGradualPruner 'agp'", "policies[0]", "prunekit-agp-pruner", "0.1.0", 1, 5),
    )
    assert [parameter.changes for parameter in others] == [(), (), ()]
    assert [parameter.name for parameter in result.pruned] == ["0.weight"]


def test_the_result_has_a_line_for_every_epoch() -> None:
    results: list[Any] = []
    result = train(application(), agp(), 6, seed=0, on_epoch=results.append)
    assert results == list(result.epochs)
    assert [entry.epoch for entry in results] == [0, 1, 2, 3, 4, 5]
    assert [entry.learning_rate for entry in results] == pytest.approx([0.1 * 0.8**epoch for epoch in range(6)])
    assert [entry.sparsity for entry in results] == sorted(entry.sparsity for entry in results)
    assert (result.loss, result.accuracy) == (results[-1].loss, results[-1].accuracy)


def test_the_dense_baseline_is_the_last_evaluation_before_the_first_mask() -> None:
    result = train(application(), agp(2, 4), 4, seed=0)
    assert result.dense == Baseline(result.epochs[1].loss, result.epochs[1].accuracy, 1)
    assert train(application(), agp(0, 4), 4, seed=0).dense is None


def test_mini_batches_report_the_mean_loss_so_far() -> None:
    seen: list[tuple[int, int, int, float]] = []

    def look(result: MinibatchResult) -> None:
        seen.append((result.epoch, result.minibatch, result.minibatches_per_epoch, result.loss))

    result = train(application(), agp(0, 2), 2, seed=0, on_minibatch=look)
    assert [entry[:3] for entry in seen] == [(epoch, number, 4) for epoch in (0, 1) for number in range(4)]
    assert [seen[3][3], seen[7][3]] == [entry.train_loss for entry in result.epochs]


def test_the_loop_waits_for_the_device_once_an_epoch_however_many_mini_batches_there_are() -> None:
    def waits(size: int) -> int:
        with Waits() as mode:
            train(application(size=size), agp(0, 2), 2, seed=0)
        return mode.number

    assert waits(64) == waits(256)


def test_a_model_without_classes_has_no_accuracy() -> None:
    run = application(loss=lambda outputs, targets: mse_loss(outputs, targets.float().unsqueeze(1).expand(-1, 3)))
    run.train_loader = run.test_loader = DataLoader([(torch.ones(6), torch.ones(())) for _ in range(8)], 4)
    result = train(run, agp(1, 2), 2, seed=0)
    assert result.accuracy is None
    assert result.dense == Baseline(result.epochs[0].loss, None, 0)


def test_accuracy_counts_every_answer_of_a_dense_prediction() -> None:
    run = application(loss=cross_entropy)
    run.model = nn.Identity()
    logits = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 1.0, 1.0]]])  # [1, 2 classes, 3 positions]: classes 0, 1, 1
    run.test_loader = DataLoader([(logits[0], torch.tensor([0, 1, 0]))])
    assert evaluate(run).accuracy == pytest.approx(2 / 3)


def test_evaluation_sees_the_masks_that_only_the_forward_pass_has() -> None:
    schedule = agp(0, 2)
    schedule["policies"][0]["pruner"]["args"] = {"mask_on_forward_only": True, "use_double_copies": True}
    run = application()
    result = train(run, schedule, 2, seed=0)
    assert result.parameters[0].sparsity == 0.75
    assert int(run.model[0].weight.count_nonzero()) == 12, "and so is the model when training has ended"


# What it leaves behind


@pytest.fixture
def no_listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody but prunekit writes into a run's folder, whoever else may be installed."""
    monkeypatch.setattr("prunekit.training.train.load_plugins", lambda trust: without_listeners())


def test_a_run_leaves_a_trace_a_checkpoint_and_its_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_listeners: None
) -> None:
    result = train(application(), agp(), 6, run_dir=tmp_path / "run", seed=3, settings={"app": "x:y"})
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [BEST, CHECKPOINT, LOCK, RESULT, "trace.jsonl"]
    assert json.loads((tmp_path / "run" / RESULT).read_text()) == json.loads(json.dumps(result.to_dict()))
    assert result.to_dict()["totals"]["pruned"] == {"parameters": 1, "dense": 48, "nonzero": 12, "sparsity": 0.75}
    assert result.to_dict()["settings"] == {"app": "x:y", "epochs": 6, "seed": 3}
    assert [line["event"] for line in read(tmp_path / "run")][-1] == "training ends"
    assert capsys.readouterr() == ("", "")


def test_a_checkpoint_holds_plain_data_and_tensors(tmp_path: Path) -> None:
    train(application(), agp(), 2, run_dir=tmp_path, seed=3)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert (state["epoch"], state["settings"]) == (2, {"epochs": 2, "seed": 3})
    assert set(state) == {
        "model", "optimizers", "average", "loss_scale", "scheduler", "stage", "epoch",
        "random", "generators", "history", "seconds", "settings",
    }  # fmt: skip


def test_a_checkpoint_that_fails_leaves_the_one_before_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(state: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    train(application(), agp(), 2, run_dir=tmp_path, seed=3)
    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        train(application(), agp(), 3, run_dir=tmp_path, resume=True)
    assert load_checkpoint(tmp_path)["epoch"] == 2
    assert not (tmp_path / f"{CHECKPOINT}.part").exists()


def test_numbers_that_are_not_finite_are_null_in_the_result(tmp_path: Path, no_listeners: None) -> None:
    factors = iter([1.0, *[float("nan")] * 9])
    run = application(loss=lambda outputs, targets: outputs.sum() * next(factors))
    told: list[str] = []
    train(run, agp(0, 1), 1, run_dir=tmp_path, seed=0, on_warning=told.append)
    assert json.loads((tmp_path / RESULT).read_text())["loss"] is None
    assert told == ["training loss is not finite: epoch 0, loss nan"]


def test_a_schedule_with_problems_trains_and_writes_nothing(tmp_path: Path) -> None:
    schedule = agp()
    schedule["pruners"]["agp"].update(final_sparsity=7, weights=["fc.wieght"])
    schedule["policies"].append({"pruner": {"instance_name": "other"}, "starting_epoch": 0, "ending_epoch": 1})
    run = application()
    before = [tensor.clone() for tensor in run.model.state_dict().values()]
    with pytest.raises(ScheduleError) as caught:
        train(run, schedule, 6, run_dir=tmp_path / "run")
    assert len(caught.value.problems) == 3
    assert not (tmp_path / "run").exists()
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.state_dict().values(), strict=True))


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path: Path) -> None:
    train(application(), agp(), 2, run_dir=tmp_path, seed=0)
    with pytest.raises(PrunekitError, match="already holds a run; resume it or choose another folder"):
        train(application(), agp(), 2, run_dir=tmp_path, seed=0)


def test_warnings_reach_the_caller_and_the_trace(tmp_path: Path) -> None:
    schedule = {key: value for key, value in agp().items() if key != "version"}
    told: list[str] = []
    train(application(), schedule, 2, run_dir=tmp_path, seed=0, on_warning=told.append)
    assert told == [
        "<dict>: no version is given; 1 is assumed",
        "<dict>: policies[0]: a run of 2 epochs cuts it off: 'agp' comes to sparsity 0.25 and not to 0.75",
    ]
    assert [line["problem"] for line in read(tmp_path) if line["level"] == "warning"] == told
    with pytest.warns(UserWarning, match="no version is given"):
        train(application(), schedule, 2, seed=0)


def test_a_failure_is_the_last_line_of_the_trace(tmp_path: Path) -> None:
    def fail(result: MinibatchResult) -> None:
        if (result.epoch, result.minibatch) == (1, 2):
            raise ZeroDivisionError("oh")

    with pytest.raises(ZeroDivisionError):
        train(application(), agp(), 6, run_dir=tmp_path, seed=0, on_minibatch=fail)
    *_, last = read(tmp_path)
    assert (last["event"], last["epoch"], last["minibatch"]) == ("training failed", 1, 2)
    assert last["error"] == "ZeroDivisionError: oh"


# How it goes on


def test_three_epochs_and_a_resumed_three_are_six_bit_for_bit(tmp_path: Path) -> None:
    straight, first, second = application(), application(), application()
    result = train(straight, agp(), 6, seed=5)
    train(first, agp(), 3, run_dir=tmp_path, seed=5)
    random.seed(99)
    torch.manual_seed(99)
    resumed = train(second, agp(), 6, run_dir=tmp_path, resume=True)
    assert_same(straight, second)
    assert (resumed.loss, resumed.accuracy, resumed.parameters) == (result.loss, result.accuracy, result.parameters)
    assert [entry.train_loss for entry in resumed.epochs] == [entry.train_loss for entry in result.epochs]
    assert resumed.dense == result.dense


@pytest.mark.parametrize(("epoch", "minibatch", "done"), [(0, 1, 0), (3, 2, 3)])
def test_an_interrupted_epoch_is_repeated_bit_for_bit(tmp_path: Path, epoch: int, minibatch: int, done: int) -> None:
    straight, first, second = application(), application(), application()
    train(straight, agp(), 6, seed=5)
    with pytest.raises(TrainingInterrupted) as caught:
        train(first, agp(), 6, run_dir=tmp_path, seed=5, on_minibatch=stop_at(epoch, minibatch))
    interrupt = caught.value
    assert (interrupt.epoch, interrupt.minibatch, interrupt.epochs_done) == (epoch, minibatch, done)
    *_, last = read(tmp_path)
    assert (last["event"], last["epoch"], last["minibatch"]) == ("training interrupted", epoch, minibatch)
    train(second, agp(), 6, run_dir=tmp_path, resume=True)
    assert_same(straight, second)
    assert [line["next_epoch"] for line in read(tmp_path) if line["event"] == "state restored"] == [done]


def test_a_run_that_was_not_seeded_resumes_bit_for_bit_too(tmp_path: Path) -> None:
    straight, first, second = application(), application(), application()
    seed_everything(7)
    train(straight, agp(), 2)
    seed_everything(7)
    with pytest.raises(TrainingInterrupted):
        train(first, agp(), 2, run_dir=tmp_path, on_minibatch=stop_at(0, 3))
    train(second, agp(), 2, run_dir=tmp_path, resume=True)
    assert_same(straight, second)


def test_a_finished_run_resumes_to_the_same_result(tmp_path: Path) -> None:
    result = train(application(), agp(), 6, run_dir=tmp_path, seed=5)
    again = train(application(), agp(), 6, run_dir=tmp_path, resume=True)
    assert (again.loss, again.parameters, again.epochs) == (result.loss, result.parameters, result.epochs)
    with pytest.raises(StateError, match=r"has 6 epochs behind it: it can't be a run of 5"):
        train(application(), agp(), 5, run_dir=tmp_path, resume=True)


def test_a_run_resumes_only_as_itself(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"there is no checkpoint\.pt"):
        train(application(), agp(), 6, run_dir=tmp_path, resume=True)
    train(application(), agp(), 2, run_dir=tmp_path, seed=5)
    with pytest.raises(StateError, match="saved under another schedule"):
        train(application(), agp(1, 7), 7, run_dir=tmp_path, resume=True)
    other = application()
    other.model[0] = nn.Linear(6, 9)
    with pytest.raises(StateError, match="does not fit the application"):
        train(other, agp(), 6, run_dir=tmp_path, resume=True)
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(StateError, match="can't be read"):
        train(application(), agp(), 6, run_dir=tmp_path, resume=True)


# What is trained


def schedule_of(*policies: tuple[str, dict[str, Any]]) -> Schedule:
    sections: dict[str, Any] = {f"{kind}s": {"x": {"class": "Any"}} for kind, _ in policies}
    entries = [{kind: {"instance_name": "x"}, **window} for kind, window in policies]
    return Schedule.from_dict({"version": 1, **sections, "policies": entries})


def between(start: int, end: int) -> dict[str, int]:
    return {"starting_epoch": start, "ending_epoch": end, "frequency": 2}


@pytest.mark.parametrize(
    ("policies", "epochs"),
    [
        ([("pruner", between(0, 38)), ("lr_scheduler", between(24, 200))], 38),
        ([("pruner", between(0, 38)), ("regularizer", between(0, 60))], 60),
        ([("pruner", {"epochs": [2, 7]})], 8),
        ([("quantizer", between(0, 300)), ("extension", between(0, 400))], 300),
        ([("lr_scheduler", between(0, 200))], 200),
        ([], None),
    ],
)
def test_a_run_lasts_until_the_last_policy_that_compresses_has_ended(policies: Any, epochs: int | None) -> None:
    assert default_epochs(schedule_of(*policies)) == epochs


@pytest.mark.parametrize(
    ("policies", "steps_per_epoch", "epochs"),
    [
        ([("pruner", {"steps": [2, 7]})], 4, 2),
        ([("pruner", {"steps": [2, 7]}), ("lr_scheduler", {"starting_step": 12, "ending_step": 99})], 4, 4),
        ([("pruner", {"steps": [2, 7]}), ("regularizer", between(0, 5))], 4, 5),
        ([("pruner", {"steps": [2, 7]}), ("regularizer", between(0, 5))], 0, None),
    ],
)
def test_windows_in_steps_last_as_many_epochs_as_they_have_steps(
    policies: Any, steps_per_epoch: int, epochs: int | None
) -> None:
    assert default_epochs(schedule_of(*policies), steps_per_epoch) == epochs


def test_a_window_that_opens_after_the_last_step_is_refused_before_training() -> None:
    app, schedule = application(), agp()
    last = 2 * app.steps_per_epoch
    schedule["policies"][0] = {"pruner": {"instance_name": "agp"}, "steps": [last, last + 1]}
    with pytest.raises(ScheduleError, match=f"never acts: its first step is {last}, and a run of {last} ends with"):
        train(app, schedule, 2)
    assert train(app, schedule, 3).parameters[0].sparsity > 0


def test_a_dense_twin_keeps_the_learning_rates_and_nothing_else() -> None:
    schedule = schedule_of(
        ("pruner", between(0, 38)), ("lr_scheduler", between(24, 200)), ("regularizer", between(0, 9))
    )
    twin = dense_schedule(schedule)
    assert twin.to_dict() == {
        "version": 1,
        "lr_schedulers": {"x": {"class": "Any"}},
        "policies": [{"lr_scheduler": {"instance_name": "x"}, **between(24, 200)}],
    }
