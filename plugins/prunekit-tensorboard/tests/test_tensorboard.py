"""What the listener writes, read back from TensorBoard's own files."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prunekit_tensorboard import TensorBoard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn.utils import parametrize

from prunekit import ComponentSpec, CompressionScheduler, PolicySpec, Schedule, Trace, Window, hookimpl, load_plugins
from prunekit.components import DropMasks, SetMasks
from prunekit.plugins.listeners import Listener
from prunekit.testing import check_component

GRADUAL = {"class": "AutomatedGradualPruner", "initial_sparsity": 0.0, "final_sparsity": 0.5, "weights": ["weight"]}
PRUNED = {  # AGP prunes 0, 3 and 4 of 8 weights in epochs 0, 1 and 2
    "version": 1,
    "pruners": {"p": GRADUAL},
    "policies": [{"pruner": {"instance_name": "p"}, "epochs": [0, 1, 2]}],
}


def network() -> nn.Module:
    """A weight of 1 … 8 that no gradient reaches."""
    model = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.arange(1.0, 9).reshape(1, 8))
    return model


def scheduler(
    folder: Path | None, schedule: Any = PRUNED, model: nn.Module | None = None, optimizer: Any = None
) -> CompressionScheduler:
    made = schedule if isinstance(schedule, Schedule) else Schedule.from_dict(schedule)
    listener = Listener("tensorboard", "prunekit-tensorboard", "0.1.0", TensorBoard)
    plugins = replace(load_plugins(), listeners=(listener,))
    trace = Trace(folder, "error", logger=None)
    return CompressionScheduler(made, network() if model is None else model, optimizer, trace=trace, plugins=plugins)


def train(run: CompressionScheduler, epochs: int, minibatches: int = 1) -> None:
    for _ in run.epochs(epochs):
        for _ in run.minibatches(range(minibatches)):
            run.total_loss(torch.zeros(()))


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "histograms": 0}).Reload()


def scalars(folder: Path, prefix: str = "") -> dict[str, list[tuple[int, float]]]:
    """By tag: (epoch, value)."""
    read = events(folder)
    tags = [tag for tag in read.Tags()["scalars"] if tag.startswith(prefix)]
    return {tag: [(point.step, point.value) for point in read.Scalars(tag)] for tag in tags}


def histograms(folder: Path) -> dict[str, list[tuple[int, float, float, float]]]:
    """By tag: (epoch, how many, smallest, largest)."""
    read = events(folder)
    points = {tag: [(p.step, p.histogram_value) for p in read.Histograms(tag)] for tag in read.Tags()["histograms"]}
    return {tag: [(step, h.num, h.min, h.max) for step, h in found] for tag, found in points.items()}


# Curves


def test_an_epoch_has_one_point_of_everything(tmp_path: Path) -> None:
    schedule = {
        "version": 1,
        "pruners": {"p": GRADUAL},
        "regularizers": {"l1": {"class": "L1Regularizer", "reg_regims": {"weight": 0.5}}},
        "lr_schedulers": {"decay": {"class": "ExponentialLR", "gamma": 0.5}},
        "policies": [
            {"pruner": {"instance_name": "p"}, "epochs": [1, 2, 3]},
            {"regularizer": {"instance_name": "l1"}, "epochs": [1, 2]},
            {"lr_scheduler": {"instance_name": "decay"}, "starting_epoch": 0, "ending_epoch": 9},
        ],
    }
    model = network()
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 1.0}, {"params": [nn.Parameter(torch.ones(1))]}], 8.0)
    run = scheduler(tmp_path, schedule, model, optimizer)
    for epoch in run.epochs(4):
        for _ in run.minibatches(range(2)):
            run.total_loss(torch.zeros(()))
        run.report(max=epoch / 4, min=torch.tensor(1 - epoch / 4))
    # L1 is half of 1 + … + 8, then half of 4 + … + 8.
    assert scalars(tmp_path) == {
        "sparsity/all": [(0, 0.0), (1, 0.0), (2, 0.375), (3, 0.5)],
        "sparsity/weight": [(0, 0.0), (1, 0.0), (2, 0.375), (3, 0.5)],
        "mask_changes/weight": [(2, 3.0), (3, 1.0)],
        "loss/l1": [(1, 18.0), (2, 15.0)],
        "learning_rate/0": [(0, 1.0), (1, 0.5), (2, 0.25), (3, 0.125)],
        "learning_rate/1": [(0, 8.0), (1, 4.0), (2, 2.0), (3, 1.0)],
        "metric/max": [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75)],
        "metric/min": [(0, 1.0), (1, 0.75), (2, 0.5), (3, 0.25)],
    }
    assert histograms(tmp_path) == {"weights/weight": [(2, 5, 4, 8), (3, 4, 5, 8)]}


def test_all_parameters_count_in_the_sparsity_of_all(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 3))  # 4 + 1 + 3 + 3 parameters
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        model[1].bias.zero_()
    half = {"class": "SparsityLevelParameterPruner", "levels": {"0.weight": 0.5}}
    run = scheduler(tmp_path, {**PRUNED, "pruners": {"p": half}}, model)
    train(run, 1)
    assert scalars(tmp_path, "sparsity") == {
        "sparsity/0.weight": [(0, 0.5)],
        "sparsity/1.weight": [(0, 0.0)],
        "sparsity/all": [(0, pytest.approx(5 / 11))],
    }
    assert run.sparsity() == 5 / 11


def test_masks_that_only_the_forward_pass_sees_are_counted(tmp_path: Path) -> None:
    args = {"mask_on_forward_only": True, "use_double_copies": True}
    policies = [{"pruner": {"instance_name": "p", "args": args}, "epochs": [0, 1, 2]}]
    train(scheduler(tmp_path, {**PRUNED, "policies": policies}), 3)
    assert scalars(tmp_path, "sparsity")["sparsity/weight"] == [(0, 0.0), (1, 0.375), (2, 0.5)]


def zeroing(parameter: str) -> dict[str, Any]:
    """L1 with a threshold of 2.5 in epoch 1: it leaves no mask."""
    l1 = {"class": "L1Regularizer", "reg_regims": {parameter: 2.5}, "threshold_criteria": "Max"}
    return {
        "version": 1,
        "regularizers": {"l1": l1},
        "policies": [{"regularizer": {"instance_name": "l1"}, "epochs": [1]}],
    }


def test_weights_that_a_regularizer_zeroes_are_counted_once(tmp_path: Path) -> None:
    train(scheduler(tmp_path, zeroing("weight")), 3)
    assert scalars(tmp_path, "sparsity") == {
        "sparsity/all": [(0, 0.0), (1, 0.25), (2, 0.25)],
        "sparsity/weight": [(0, 0.0), (1, 0.25), (2, 0.25)],
    }


def test_a_bias_that_somebody_has_changed_is_shown_too(tmp_path: Path) -> None:
    model = nn.Linear(8, 2)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([1.0, 3.0]))
    train(scheduler(tmp_path, zeroing("bias"), model), 3)
    assert scalars(tmp_path, "sparsity")["sparsity/bias"] == [(1, 0.5)]


class PrunesLate:
    """Masks the first weight when epoch 1 has ended."""

    @hookimpl
    def on_epoch_end(self, progress: Any) -> SetMasks | None:
        return SetMasks({"weight": torch.arange(8).reshape(1, 8) > 0}) if progress.epoch == 1 else None


def test_what_is_pruned_as_the_epoch_ends_is_told_after_it(tmp_path: Path) -> None:
    schedule = Schedule([ComponentSpec("extension", "x", PrunesLate)], [PolicySpec("extension", "x", Window(0, 3))])
    train(scheduler(tmp_path, schedule), 3)
    assert scalars(tmp_path) == {
        "sparsity/weight": [(0, 0.0), (1, 0.0), (1, 0.125), (2, 0.125)],
        "sparsity/all": [(0, 0.0), (1, 0.0), (2, 0.125)],
        "mask_changes/weight": [(2, 1.0)],
    }


class Drops:
    """One weight is masked for epoch 0 alone."""

    @hookimpl
    def on_epoch_begin(self, progress: Any) -> Any:
        chosen = SetMasks({"weight": torch.arange(8).reshape(1, 8) > 0})
        return chosen if progress.epoch == 0 else DropMasks(("weight",))


def test_masks_that_are_dropped_change_sides_too(tmp_path: Path) -> None:
    schedule = Schedule([ComponentSpec("extension", "x", Drops)], [PolicySpec("extension", "x", Window(0, 3))])
    train(scheduler(tmp_path, schedule), 3)
    assert scalars(tmp_path, "mask") == {"mask_changes/weight": [(0, 1.0), (1, 1.0)]}


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 2


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("parametrized", [False, True])
def test_names_are_those_of_the_schedule(tmp_path: Path, compiled: bool, parametrized: bool) -> None:
    model = network()
    if parametrized:
        parametrize.register_parametrization(model, "weight", Doubled())
        with torch.no_grad():
            model.parametrizations.weight.original.copy_(torch.arange(1.0, 9).reshape(1, 8))
    train(scheduler(tmp_path, model=torch.compile(model, backend="eager") if compiled else model), 3)
    assert scalars(tmp_path, "sparsity")["sparsity/weight"] == [(0, 0.0), (1, 0.375), (2, 0.5)]
    assert histograms(tmp_path) == {"weights/weight": [(1, 5, 4, 8), (2, 4, 5, 8)]}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_may_be_of_any_type(tmp_path: Path, dtype: torch.dtype) -> None:
    train(scheduler(tmp_path, model=network().to(dtype)), 2)
    assert histograms(tmp_path) == {"weights/weight": [(1, 5, 4, 8)]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e30])
def test_a_network_that_has_diverged_stops_no_training(tmp_path: Path, value: float) -> None:
    model = network()
    run = scheduler(tmp_path, model=model)
    for epoch in run.epochs(4):
        with torch.no_grad():
            model.weight[0, 7:] = value if epoch == 2 else model.weight[0, 7:]
            model.weight[0] = value if epoch == 3 else model.weight[0]
    assert histograms(tmp_path) == {"weights/weight": [(1, 5, 4, 8), (2, 3, 5, 7)]}


# Runs that go on, that end, and that do not


def resumed(run: CompressionScheduler, folder: Path) -> CompressionScheduler:
    model = network()
    model.load_state_dict(run.model.state_dict())
    other = scheduler(folder, model=model)
    other.load_state_dict(run.state_dict())
    return other


STRAIGHT = {
    "sparsity/weight": [(0, 0.0), (1, 0.375), (2, 0.5), (3, 0.5)],
    "sparsity/all": [(0, 0.0), (1, 0.375), (2, 0.5), (3, 0.5)],
    "mask_changes/weight": [(1, 3.0), (2, 1.0), (3, 0.0)],
}


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_resumed_run_has_the_curves_of_the_straight_one(tmp_path: Path, done: int) -> None:
    train(scheduler(tmp_path / "straight"), 4)
    assert scalars(tmp_path / "straight") == STRAIGHT
    first = scheduler(tmp_path)
    train(first, done)
    second = resumed(first, tmp_path)
    first.model.weight.data.zero_()
    for epoch in range(done, 4):  # what the run writes after its checkpoint is void
        first.on_epoch_begin(epoch)
        first.on_epoch_end(epoch)
    train(second, 4)
    assert scalars(tmp_path) == STRAIGHT


def test_a_run_resumed_within_an_epoch_writes_that_epoch(tmp_path: Path) -> None:
    first = scheduler(tmp_path)
    train(first, 1)
    first.on_epoch_begin(1)
    first.on_minibatch_begin(1, 0, 2)
    second = resumed(first, tmp_path)
    second.on_minibatch_end(1, 1, 2)
    second.on_epoch_end(1)
    train(second, 4)
    # Which weights epoch 1 had pruned before it was stopped nobody tells.
    assert scalars(tmp_path) == {**STRAIGHT, "mask_changes/weight": [(1, 0.0), (2, 1.0), (3, 0.0)]}


def test_a_scheduler_that_is_taken_back_begins_again_there(tmp_path: Path) -> None:
    run = scheduler(tmp_path)
    train(run, 1)
    state = run.state_dict()
    weights = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    for epoch in (1, 2):
        run.on_epoch_begin(epoch)
        run.on_epoch_end(epoch)
    run.model.load_state_dict(weights)
    run.load_state_dict(state)
    train(run, 4)
    assert scalars(tmp_path) == STRAIGHT


def test_an_epoch_that_has_ended_is_on_the_disk(tmp_path: Path) -> None:
    run = scheduler(tmp_path, zeroing("weight"))
    for epoch in range(2):
        run.on_epoch_begin(epoch)
        for _ in run.minibatches(range(1)):
            run.total_loss(torch.zeros(()))
        run.on_epoch_end(epoch)
    assert scalars(tmp_path) == {
        "sparsity/weight": [(0, 0.0), (1, 0.25)],
        "sparsity/all": [(0, 0.0), (1, 0.25)],
        "loss/l1": [(1, 90.0)],
    }


@pytest.mark.parametrize("ended", [True, False])
def test_no_writer_is_left_behind(tmp_path: Path, ended: bool) -> None:
    gc.collect()  # of the tests before
    before = threading.active_count()
    run = scheduler(tmp_path)
    run.on_epoch_begin(0)
    run.on_epoch_end(0)
    assert threading.active_count() == before + 1
    if ended:
        run.on_train_end()
    else:
        del run
        gc.collect()
    assert threading.active_count() == before


# Folders


def test_a_run_without_a_folder_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(scheduler(None), 3)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_written_stops_the_run_before_it_trains(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    run = scheduler(tmp_path)
    with pytest.raises(OSError, match="tensorboard") as error:
        run.on_epoch_begin(0)
    assert error.value.__notes__ == ["raised in on_epoch_begin by tensorboard, prunekit-tensorboard 0.1.0"]


def test_two_runs_side_by_side_do_not_meet(tmp_path: Path) -> None:
    one, other = scheduler(tmp_path / "one"), scheduler(tmp_path / "other")
    for _ in zip(one.epochs(4), other.epochs(4), strict=True):
        pass
    assert scalars(tmp_path / "one") == scalars(tmp_path / "other") == STRAIGHT


def test_it_only_listens() -> None:
    check_component(TensorBoard, kind="listener")
