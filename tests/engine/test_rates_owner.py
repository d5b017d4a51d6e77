"""Learning rates have one owner: who else moves them is said, and so is what a schedule would do by surprise."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from helpers import Recorder
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, OneCycleLR

from prunekit import ArgumentError, CompressionScheduler, PrunekitError, ScheduleError, Trace, hookimpl
from prunekit.components import SetLearningRates
from prunekit.engine.rates.schedule import LearningRateSchedule
from prunekit.progress import Progress

MINIBATCHES = 4


def decays(unit: str = "epoch", start: int = 0, end: int = 4, **args: Any) -> dict[str, Any]:
    """A schedule that halves the rate."""
    policy = {"lr_scheduler": {"instance_name": "lr", "args": args}, f"starting_{unit}": start, f"ending_{unit}": end}
    return {"version": 1, "lr_schedulers": {"lr": {"class": "ExponentialLR", "gamma": 0.5}}, "policies": [policy]}


def sgd(*rates: Any, **more: Any) -> SGD:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate, **more} for rate in rates]
    return SGD(groups, lr=1.0, momentum=0.9)


class Loop:
    """A training loop: what else happens in it, and what comes of it.

    `after_step`, `in_epoch` and `between` are called with (epoch, mini-batch) after each step, and with (epoch) when an
    epoch has begun, and when it has ended.
    """

    def __init__(self, data: Mapping[str, Any], optimizer: Optimizer, **more: Any) -> None:
        self.log, self.optimizer = Recorder(), optimizer
        trace = Trace(logger=self.log)
        self.scheduler = CompressionScheduler.from_dict(data, torch.nn.Linear(1, 1), optimizer, trace=trace, **more)
        self.rates: list[float] = []
        self.after_step: Callable[[int, int], object] = lambda epoch, minibatch: None
        self.between: Callable[[int], object] = lambda epoch: None
        self.steps: Callable[[int, int], bool] = lambda epoch, minibatch: True

    def run(self, epochs: int = 4, first: int = 0) -> Loop:
        for epoch in range(first, epochs):
            self.scheduler.on_epoch_begin(epoch)
            for minibatch in range(MINIBATCHES):
                self.scheduler.on_minibatch_begin(epoch, minibatch, MINIBATCHES)
                self.rates.append(float(self.optimizer.param_groups[0]["lr"]))
                if self.steps(epoch, minibatch):
                    self.optimizer.step()
                self.after_step(epoch, minibatch)
                self.scheduler.on_minibatch_end(epoch, minibatch, MINIBATCHES)
            self.scheduler.on_epoch_end(epoch)
            self.between(epoch)
        return self


def moves(loop: Loop) -> list[list[Any]]:
    return loop.log.values("learning rate moved", "policy", "by", "groups", "set", "found", "epoch")


def test_a_torch_scheduler_that_moves_the_rate_each_step_is_one_warning_at_once() -> None:
    optimizer = sgd(1.0)
    theirs = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    loop = Loop(decays(), optimizer)
    loop.after_step = lambda epoch, minibatch: theirs.step()
    loop.run()
    assert moves(loop) == [["policies[0]", "a torch LR scheduler", [0], [1.0], [0.5], 0]]
    assert loop.log.values("learning rate moved", "minibatch") == [[0]]


def test_one_that_moves_it_between_epochs_is_heard_of_when_the_next_begins() -> None:
    optimizer = sgd(1.0)
    theirs = ExponentialLR(optimizer, gamma=0.9)
    loop = Loop(decays(end=1), optimizer)
    loop.between = lambda epoch: theirs.step()
    loop.run(3)
    # After its window the policy has set no rate that could be moved.
    assert moves(loop) == [["policies[0]", "a torch LR scheduler", [0], [0.5], [0.45], 1]]


def test_a_rate_that_is_moved_by_hand_names_the_group_and_both_values() -> None:
    loop = Loop(decays(), sgd(1.0, 8.0))

    def by_hand(epoch: int, minibatch: int) -> None:
        if (epoch, minibatch) == (2, 1):
            loop.optimizer.param_groups[1]["lr"] = 0.1

    loop.after_step = by_hand
    loop.run()
    assert moves(loop) == [["policies[0]", "something else", [1], [2.0], [0.1], 2]]


def test_each_way_in_which_a_rate_moves_is_said_once() -> None:
    loop = Loop(decays(), sgd(1.0))

    def by_hand(*when: int) -> None:
        loop.optimizer.param_groups[0]["lr"] *= 0.9

    loop.after_step = loop.between = by_hand
    loop.run()
    assert [found[-1] for found in moves(loop)] == [0, 1]  # within epochs, and between them


def test_a_rate_of_each_step_has_an_owner_too() -> None:
    loop = Loop(decays("step", end=9), sgd(1.0))

    def by_hand(epoch: int, minibatch: int) -> None:
        if (epoch, minibatch) == (1, 2):
            loop.optimizer.param_groups[0]["lr"] = 7.0

    loop.after_step = by_hand
    loop.run()
    assert moves(loop) == [["policies[0]", "something else", [0], [0.5**6], [7.0], 1]]
    assert loop.rates[6:8] == [0.5**6, 0.5**7], "the schedule takes it back"


def test_a_tensor_that_somebody_writes_to_is_seen() -> None:
    loop = Loop(decays(), sgd(torch.tensor(0.1)))
    loop.after_step = lambda epoch, minibatch: epoch == 1 and loop.optimizer.param_groups[0]["lr"].mul_(0.5)
    loop.run(2)
    rounded = float(torch.tensor(0.1))
    assert moves(loop) == [["policies[0]", "something else", [0], [rounded / 2], [rounded / 4], 1]]


def nothing(loop: Loop) -> None: ...


def adds_a_group(loop: Loop) -> None:
    loop.between = lambda epoch: (
        epoch == 1 and loop.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 32.0})
    )


def loads_its_own_state(loop: Loop) -> None:
    loop.between = lambda epoch: loop.optimizer.load_state_dict(loop.optimizer.state_dict())


def writes_the_same_rate(loop: Loop) -> None:
    def write(epoch: int, minibatch: int) -> None:
        group = loop.optimizer.param_groups[0]
        group["lr"] = group["lr"].clone() if isinstance(group["lr"], torch.Tensor) else float(str(group["lr"]))

    loop.after_step = write


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)], ids=["a number", "a tensor of 32 bits"])
@pytest.mark.parametrize("does", [nothing, adds_a_group, loads_its_own_state, writes_the_same_rate])
@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_nobody_is_accused_who_moves_nothing(unit: str, does: Callable[[Loop], None], rate: Any) -> None:
    loop = Loop(decays(unit), sgd(rate))
    does(loop)
    loop.run(5)
    assert loop.log.warnings == []


def test_policies_that_follow_one_another_and_extensions_are_the_schedules_own() -> None:
    data = decays(end=2)
    later = {"lr_scheduler": {"instance_name": "lr", "args": {"relative": True}}, "epochs": [2, 3]}

    class Warm:
        @hookimpl
        def on_minibatch_begin(self, progress: Progress) -> SetLearningRates | None:
            return SetLearningRates([{"lr": 0.3}]) if progress.minibatch == 1 else None

    loop = Loop({**data, "policies": [*data["policies"], later]}, sgd(1.0), listeners=[Warm()])
    assert loop.run().log.warnings == []


def test_a_plateau_takes_what_it_finds_and_owns_what_it_has_set() -> None:
    data = decays()
    data["lr_schedulers"]["lr"] = {"class": "ReduceLROnPlateau", "factor": 0.5, "patience": 0}
    optimizer, log = sgd(1.0), Recorder()
    scheduler = CompressionScheduler.from_dict(data, torch.nn.Linear(1, 1), optimizer, trace=Trace(logger=log))
    rates = []
    for epoch in range(4):
        scheduler.on_epoch_begin(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
        if epoch in (0, 2):
            optimizer.param_groups[0]["lr"] = 0.8
        scheduler.on_epoch_end(epoch, metrics={"min": 1.0})
    assert rates == [1.0, 0.8, 0.4, 0.4]
    assert log.values("learning rate moved", "epoch", "set", "found") == [[2, [0.4], [0.8]]]


def test_a_window_that_is_not_open_looks_at_nothing() -> None:
    loop = Loop(decays(start=1, end=2, relative=True), sgd(1.0))
    watching = []
    loop.after_step = lambda epoch, minibatch: watching.append(loop.scheduler._execution.ledger.rates.watching)
    loop.run(3)
    assert watching == [*[False] * MINIBATCHES, *[True] * MINIBATCHES, *[False] * MINIBATCHES]


# The base of each group


def test_the_rate_that_a_run_began_with_is_the_base() -> None:
    optimizer = sgd(0.25, 0.125, initial_lr=1.0)
    optimizer.param_groups[1]["initial_lr"] = 8.0
    scheduler = CompressionScheduler.from_dict(decays(), torch.nn.Linear(1, 1), optimizer, trace=Trace(level="error"))
    rates = [[group["lr"] for group in optimizer.param_groups] for _ in scheduler.epochs(3)]
    assert rates == [[1.0, 8.0], [0.5, 4.0], [0.25, 2.0]]


def test_a_run_that_is_resumed_keeps_its_base_whatever_the_optimizer_says() -> None:
    one = Loop(decays(), sgd(1.0)).run(2)
    other = Loop(decays(), sgd(99.0, initial_lr=77.0))
    other.optimizer.load_state_dict(one.optimizer.state_dict())
    other.scheduler.load_state_dict(one.scheduler.state_dict())
    assert other.run(4, first=2).rates == one.run(4, first=2).rates[2 * MINIBATCHES :]


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_a_group_that_comes_later_has_a_base_of_its_own(unit: str) -> None:
    loop = Loop(decays(unit, end=16), sgd(1.0))
    new = {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 3.0, "initial_lr": 32.0}
    loop.between = lambda epoch: epoch == 0 and loop.optimizer.add_param_group(new)
    loop.run(2)
    halved = 2 if unit == "epoch" else 2 * MINIBATCHES
    assert [group["lr"] for group in loop.optimizer.param_groups] == [0.5**halved, 32 * 0.5**halved]


def test_of_groups_that_are_taken_away_the_others_keep_their_base() -> None:
    loop = Loop(decays(), sgd(1.0, 8.0, 64.0))
    loop.between = lambda epoch: epoch == 1 and loop.optimizer.param_groups.pop(0)
    loop.run(3)
    assert [group["lr"] for group in loop.optimizer.param_groups] == [1.0, 8.0]


def test_a_plateau_remembers_its_metrics_when_a_group_comes() -> None:
    data = decays()
    data["lr_schedulers"]["lr"] = {"class": "ReduceLROnPlateau", "factor": 0.5, "patience": 1}
    optimizer = sgd(1.0)
    scheduler = CompressionScheduler.from_dict(data, torch.nn.Linear(1, 1), optimizer, trace=Trace(level="error"))
    for epoch in range(3):  # the first is the best, and after two that are no better the rate falls
        scheduler.on_epoch_begin(epoch)
        if epoch == 2:
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 8.0})
        scheduler.on_epoch_end(epoch, metrics={"min": 1.0})
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 4.0]


def test_groups_of_several_optimizers_are_one_list() -> None:
    groups = [*sgd(1.0).param_groups, *Adam([torch.nn.Parameter(torch.zeros(1))], lr=8.0).param_groups]
    assert [group["lr"] for group in LearningRateSchedule(ExponentialLR, {"gamma": 0.5}, groups).at(2)] == [0.25, 2.0]
    keys: dict[str, Any] = {"max_lr": 0.5, "total_steps": 4}
    with pytest.raises(ArgumentError, match=r"cycle_momentum: must be false: of these optimizers some have a momentum"):
        LearningRateSchedule(OneCycleLR, keys, groups)
    cycle = LearningRateSchedule(OneCycleLR, {**keys, "cycle_momentum": False}, groups)
    assert cycle.at(0) == [{"lr": pytest.approx(0.02)}, {"lr": pytest.approx(0.02)}]


def test_an_optimizer_that_finds_its_rate_itself_is_refused() -> None:
    optimizer = sgd(1.0)
    optimizer.param_groups[0]["lr"] = None
    with pytest.raises(ScheduleError, match="of group 0: the optimizer's groups hold lr=None"):
        CompressionScheduler.from_dict(decays(), torch.nn.Linear(1, 1), optimizer, trace=Trace(level="error"))


def test_a_copy_of_a_scheduler_of_rates_goes_on_alone() -> None:
    data = decays(end=8)
    data["lr_schedulers"]["plateau"] = {"class": "ReduceLROnPlateau", "factor": 0.5, "patience": 0}
    data["policies"].append({"lr_scheduler": {"instance_name": "plateau"}, "epochs": [8, 9]})
    scheduler = Loop(data, sgd(1.0)).scheduler
    (rates, plateau), groups = scheduler.components.values(), sgd(1.0).param_groups
    assert (rates.at(2)[0]["lr"], plateau.after({"min": 1.0}, groups)[0]["lr"]) == (0.25, 1.0)
    for copied in (copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))):
        copy_of_rates, copy_of_plateau = copied(rates), copied(plateau)
        assert (copy_of_rates.at(3)[0]["lr"], rates.at(2)[0]["lr"]) == (0.125, 0.25)
        for _ in range(2):  # the first that is no better than what the original has seen
            assert copy_of_plateau.after({"min": 1.0}, groups)[0]["lr"] == 0.5
    assert plateau.after({"min": 0.5}, groups)[0]["lr"] == 1.0


# Steps


def test_a_step_that_is_skipped_or_not_due_yet_moves_nothing() -> None:
    accumulated = Loop(decays("step"), sgd(1.0))
    accumulated.steps = lambda epoch, minibatch: minibatch % 2 == 1
    assert accumulated.run(2).rates == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    skipped = Loop(decays("step"), sgd(1.0))
    skipped.steps = lambda epoch, minibatch: minibatch != 1
    assert skipped.run(1).rates == [1.0, 0.5, 0.5, 0.25]


def test_a_late_window_waits_for_its_first_step_to_be_taken() -> None:
    loop = Loop(decays("step", start=1, end=3), sgd(1.0))
    loop.steps = lambda epoch, minibatch: minibatch % 2 == 1
    assert loop.run(2).rates == [1.0, 1.0, 1.0, 1.0, 0.25, 0.25, 0.125, 0.125]
    relative = Loop(decays("step", start=1, end=3, relative=True), sgd(1.0))
    relative.steps = lambda epoch, minibatch: minibatch % 2 == 1
    assert relative.run(2).rates == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_of_rates_of_each_step_the_trace_tells_the_first_and_the_last() -> None:
    log = Recorder()
    optimizer, trace = sgd(1.0), Trace(logger=log, level="debug")
    scheduler = CompressionScheduler.from_dict(decays("step", end=3), torch.nn.Linear(1, 1), optimizer, trace=trace)
    for _ in scheduler.epochs(1):
        for _ in scheduler.minibatches(range(5)):
            optimizer.step()
    told = log.values("learning rate changed", "level", "after")
    assert told == [["debug", [0.5]], ["debug", [0.25]], ["info", [0.125]]]


# Jumps


def jump(before: float, after: float, epoch: int) -> str:
    """What is said of the first policy."""
    return (
        f"policies[0].lr_scheduler: the learning rate jumps from {before:.4g} to {after:.4g} when the window opens in "
        f"epoch {epoch}: it counts time from the start of the run; with args: {{relative: true}} it counts from there"
    )


def told(data: Mapping[str, Any], optimizer: Optimizer) -> list[str]:
    loop = Loop(data, optimizer)
    loop.run(5)
    assert loop.log.values("learning rate jumps", "before") == [], "it is said once"
    return [text.partition(": ")[2] for (text,) in loop.log.values("schedule", "problem")]


@pytest.mark.parametrize(
    ("start", "args", "expected"),
    [(0, {}, []), (1, {}, [jump(1, 0.25, 1)]), (2, {}, [jump(1, 0.125, 2)]), (2, {"relative": True}, [])],
)
def test_a_jump_at_the_opening_of_a_window_is_said_before_training(start: int, args: Any, expected: Any) -> None:
    assert told(decays(start=start, **args), sgd(1.0)) == expected


def test_three_times_is_no_jump() -> None:
    data = decays(start=1)
    data["lr_schedulers"]["lr"]["gamma"] = 3.0**0.5
    assert told(data, sgd(1.0)) == []


def test_a_policy_is_compared_with_the_one_before_it() -> None:
    data = decays(end=3)
    data["lr_schedulers"]["up"] = {"class": "ConstantLR", "factor": 1.0}
    data["policies"].append({"lr_scheduler": {"instance_name": "up"}, "starting_epoch": 3, "ending_epoch": 5})
    (said,) = told(data, sgd(1.0))
    assert said.startswith("policies[1].lr_scheduler: the learning rate jumps from 0.125 to 1 when the window opens")


def test_a_jump_that_only_training_shows_is_in_the_trace() -> None:
    loop = Loop(decays("step", start=5, end=9), sgd(1.0 / 32, initial_lr=1.0))
    loop.after_step = lambda epoch, minibatch: loop.optimizer.param_groups[0].update(lr=1.0)
    loop.run(2)
    assert loop.log.values("learning rate jumps", "policy", "before", "after", "advice", "epoch", "minibatch") == [
        ["policies[0]", 1.0, 0.5**6, "args: {relative: true}", 1, 1]
    ]


# Metrics


def plateau(unit: str = "epoch", start: int = 0, **args: Any) -> dict[str, Any]:
    data = decays(unit, start, **args)
    data["lr_schedulers"]["lr"] = {"class": "ReduceLROnPlateau"}
    return data


def test_an_epoch_without_its_metric_fails_before_anything_has_happened() -> None:
    loop = Loop(plateau(), sgd(1.0))
    ended = []

    class Ends:
        @hookimpl
        def on_epoch_end(self) -> None:
            ended.append(loop.scheduler.progress.epoch)

    loop = Loop(plateau(), sgd(1.0), listeners=[Ends()])
    loop.scheduler.on_epoch_begin(0)
    for metrics, got in [
        (None, "none"),
        ({}, "none"),
        ({"max": 1.0}, "only 'max'"),
        ({"min": "low"}, "a number, got 'low'"),
    ]:
        with pytest.raises(PrunekitError, match=f"ReduceLROnPlateau needs on_epoch_end.*, (got )?{got}"):
            loop.scheduler.on_epoch_end(0, metrics=metrics)  # type: ignore[arg-type]
    assert ended == []
    loop.scheduler.on_epoch_end(0, metrics={"min": torch.tensor(1.0)})  # type: ignore[dict-item]
    assert ended == [0]


@pytest.mark.parametrize(("metrics", "got"), [(None, "none"), ({"max": 1.0}, "only 'max'")])
def test_a_metric_that_will_be_needed_is_missed_as_soon_as_an_epoch_ends_without_it(metrics: Any, got: str) -> None:
    loop = Loop(plateau(start=2), sgd(1.0))
    for epoch in range(2):
        loop.scheduler.on_epoch_begin(epoch)
        loop.scheduler.on_epoch_end(epoch, metrics=metrics)
    ((epoch, (lacking,)),) = loop.log.values("metrics missing", "epoch", "lacking")
    assert epoch == 0
    assert lacking.endswith(f"ReduceLROnPlateau needs on_epoch_end(metrics={{'min': …}}), got {got}")


def test_metrics_do_not_come_with_steps() -> None:
    with pytest.raises(ScheduleError, match="looks at metrics, which come when an epoch ends"):
        Loop(plateau("step"), sgd(1.0))


def test_a_plateau_counts_from_nowhere() -> None:
    loop = Loop(plateau(relative=True), sgd(1.0))
    (warning,) = loop.log.values("schedule", "problem")
    assert warning[0].endswith(
        "no effect: ReduceLROnPlateau counts its own active epochs, and starts from the rate that it finds"
    )
