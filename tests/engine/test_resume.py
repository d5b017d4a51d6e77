"""Resume equals the uninterrupted run, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from helpers import MLP, SILENT, batches, equal, pruning, through_a_file, train_attached, train_explicit, window
from torch import nn

from prunekit import (
    ComponentSpec,
    CompressionScheduler,
    PolicySpec,
    Progress,
    Schedule,
    ScheduleError,
    StateError,
    Window,
    hookimpl,
    load_plugins,
)
from prunekit.plugins.listeners import Listener

EPOCHS, CUTS = 8, (1, 2, 3, 6)
PRUNERS: dict[str, dict[str, Any]] = {
    "AutomatedGradualPruner": {"initial_sparsity": 0.1, "final_sparsity": 0.8, "weights": ["fc?.weight"]},
    "SensitivityPruner": {"sensitivities": {"fc1.weight": 0.9, "fc2.weight": 0.5}},
    "SparsityLevelParameterPruner": {"levels": {"*": 0.5}},
    "MagnitudeParameterPruner": {"thresholds": {"*": 0.1}},
}
REGULARIZERS: dict[str, dict[str, Any]] = {
    "L1Regularizer": {"reg_regims": {"fc1.weight": 0.01, "fc2.weight": 0.02}, "threshold_criteria": "Max"},
    "GroupLassoRegularizer": {"reg_regims": {"fc1.weight": [0.05, "Rows"]}, "threshold_criteria": "Mean_Abs"},
}
LR: dict[str, dict[str, Any]] = {
    "ExponentialLR": {"gamma": 0.9},
    "StepLR": {"step_size": 3, "gamma": 0.5},
    "MultiStepLR": {"milestones": [2, 4, 6], "gamma": 0.5},
    "CosineAnnealingLR": {"T_max": 8},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "OneCycleLR": {"max_lr": 0.5, "total_steps": 9},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.5, "step_size_up": 2},
    "LinearLR": {"start_factor": 0.5, "total_iters": 4},
    "ReduceLROnPlateau": {"patience": 1, "factor": 0.5},
    "MultiStepMultiGammaLR": {"milestones": [2, 5], "gammas": [0.5, 0.1]},
    "PolynomialLR": {"T_max": 8, "power": 2.0},
}
ARGS: dict[str, dict[str, Any]] = {
    "forward only": {"mask_on_forward_only": True},
    "double copies": {"mask_on_forward_only": True, "use_double_copies": True},
    "masked gradients": {"mask_on_forward_only": True, "mask_gradients": True},
    "kept": {"mask_on_forward_only": True, "keep_mask": True},
    "every third step": {"mini_batch_pruning_frequency": 3},
    "first skipped": {"skip_first_minibatch": True},
    "discarded": {"discard_masks_at_minibatch_end": True},
}


def with_lr(schedule: dict[str, Any], class_: str, when: dict[str, Any], **keys: Any) -> dict[str, Any]:
    policies = [*schedule["policies"], {"lr_scheduler": {"instance_name": "lr"}, **when}]
    return {**schedule, "lr_schedulers": {"lr": {"class": class_, **keys}}, "policies": policies}


def regularizing(class_: str, **keys: Any) -> dict[str, Any]:
    policy = {"regularizer": {"instance_name": "r", "args": {"keep_mask": True}}, **window(1, 5)}
    return {"version": 1, "regularizers": {"r": {"class": class_, **keys}}, "policies": [policy]}


SCHEDULES: dict[str, dict[str, Any]] = {
    **{name: pruning(name, window(1, 7, 2), **keys) for name, keys in PRUNERS.items()},
    **{name: regularizing(name, **keys) for name, keys in REGULARIZERS.items()},
    **{name: with_lr(pruning(), name, window(0, 20), **keys) for name, keys in LR.items()},
    "a late LR policy": with_lr(pruning(), "StepLR", window(4, 7), step_size=3),
    **{name: pruning(when=window(1, 6, 2), args=args) for name, args in ARGS.items()},
}


class Run:
    """A model in training, whose state goes through a file at some epoch."""

    def __init__(self, schedule: dict[str, Any], adam: bool = False) -> None:
        self.schedule, self.adam = schedule, adam
        self.start()

    def start(self) -> None:
        self.model = MLP()
        parameters = self.model.parameters()
        sgd = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.001)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01) if self.adam else sgd
        self.scheduler = CompressionScheduler.from_dict(self.schedule, self.model, self.optimizer, trace=SILENT)

    def state(self) -> Any:
        parts = self.model, self.optimizer, self.scheduler
        return through_a_file([part.state_dict() for part in parts])

    def continue_from(self, state: Any) -> None:
        self.start()
        for part, saved in zip((self.model, self.optimizer, self.scheduler), state, strict=True):
            part.load_state_dict(saved)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("cut", CUTS)
def test_resume_equals_the_straight_run_bit_for_bit(name: str, cut: int) -> None:
    """Peers lines 2, 4 and 21: masks, statistics and progress are all state."""
    resumed = Run(SCHEDULES[name])
    resumed.continue_from(states_after(name)[cut])
    train_attached(resumed.scheduler, resumed.optimizer, EPOCHS)
    assert equal(straight(name), resumed.state())


@cache
def straight(name: str) -> Any:
    """What a run of this schedule comes to that nothing has interrupted."""
    run = Run(SCHEDULES[name])
    train_attached(run.scheduler, run.optimizer, EPOCHS)
    return run.state()


@cache
def states_after(name: str) -> list[Any]:
    """The states of a run after 0, 1, 2, … epochs."""
    run = Run(SCHEDULES[name])
    states = [run.state()]
    for epoch in range(max(CUTS)):
        train_explicit(run.scheduler, run.optimizer, range(epoch, epoch + 1))
        states.append(run.state())
    return states


@pytest.mark.parametrize("name", ["AutomatedGradualPruner", "SensitivityPruner", "kept", "OneCycleLR"])
def test_both_ways_of_use_give_the_same_run(name: str) -> None:
    attached, explicit = Run(SCHEDULES[name], adam=True), Run(SCHEDULES[name], adam=True)
    train_attached(attached.scheduler, attached.optimizer, EPOCHS)
    train_explicit(explicit.scheduler, explicit.optimizer, range(EPOCHS))
    assert equal(attached.state(), explicit.state())


def test_a_checkpoint_belongs_after_an_epoch() -> None:
    states: list[Any] = []
    run = Run(SCHEDULES["AutomatedGradualPruner"])
    ended: list[int] = []

    def save(epoch: int) -> None:
        ended.append(epoch)
        states.append(run.state())

    for _ in run.scheduler.epochs(3, after_epoch=save):
        pass
    assert ended == [0, 1, 2]
    assert [state[2]["next_epoch"] for state in states] == [1, 2, 3]


@pytest.mark.parametrize("name", ["every third step", "double copies", "AutomatedGradualPruner"])
def test_resume_between_two_minibatches(name: str) -> None:
    data, straight, resumed = batches(), Run(SCHEDULES[name]), Run(SCHEDULES[name])
    train_explicit(straight.scheduler, straight.optimizer, range(4))
    train_explicit(resumed.scheduler, resumed.optimizer, range(3))
    resumed.scheduler.on_epoch_begin(3)
    for minibatch in range(4):
        if minibatch == 2:
            resumed.continue_from(resumed.state())
        minibatch_of(resumed, 3, minibatch, data)
    resumed.scheduler.on_epoch_end(3, metrics={"min": 1.0, "max": 0.5})
    assert equal(straight.state(), resumed.state())


class Beginnings:
    """A component and a listener alike: what it hears of the beginning."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    @hookimpl
    def on_train_begin(self, progress: Progress) -> None:
        self.heard.append(("train", progress[:3]))

    @hookimpl
    def on_epoch_begin(self, progress: Progress) -> None:
        self.heard.append(("epoch", progress.epoch))

    @hookimpl
    def on_minibatch_begin(self, progress: Progress) -> None:
        self.heard.append(("minibatch", progress.minibatch))


@pytest.mark.parametrize("event", ["on_minibatch_begin", "on_minibatch_end", "on_epoch_end"])
def test_a_run_that_is_resumed_within_an_epoch_begins_with_its_first_event(event: str) -> None:
    def begin() -> tuple[CompressionScheduler, Beginnings, Beginnings]:
        component, listener = ComponentSpec("extension", "c", Beginnings), Beginnings()
        schedule = Schedule([component], [PolicySpec("extension", "c", Window(0, 3))])
        plugins = replace(load_plugins(), listeners=(Listener("hears", "hears", "1", listener),))
        scheduler = CompressionScheduler(schedule, MLP(), trace=SILENT, plugins=plugins)
        return scheduler, listener, scheduler.components["extensions.c"]

    first, _, _ = begin()
    first.on_epoch_begin(1)
    first.on_minibatch_begin(1, 0, 2)
    resumed, listener, component = begin()
    resumed.load_state_dict(first.state_dict())
    assert listener.heard == []
    getattr(resumed, event)(*(1,) if event == "on_epoch_end" else (1, 1, 2))
    resumed.on_epoch_begin(2)
    when = (1, -1, 2) if event == "on_epoch_end" else (1, 1, 2)
    more = [("minibatch", 1)] if event == "on_minibatch_begin" else []
    assert listener.heard == [("train", when), *more, ("epoch", 2)]
    assert component.heard == [*more, ("epoch", 2)]  # as in a run that was not stopped


def minibatch_of(run: Run, epoch: int, minibatch: int, data: Any) -> None:
    scheduler, (x, y) = run.scheduler, data[minibatch]
    scheduler.on_minibatch_begin(epoch, minibatch, len(data))
    loss = nn.functional.cross_entropy(run.model(x), y)
    loss = scheduler.before_backward_pass(epoch, minibatch, len(data), loss)
    run.optimizer.zero_grad()
    loss.backward()
    scheduler.before_parameter_optimization(epoch, minibatch, len(data))
    run.optimizer.step()
    scheduler.on_minibatch_end(epoch, minibatch, len(data))


def test_masks_follow_a_model_that_is_wrapped_or_not() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = MLP()

    run = Run(SCHEDULES["AutomatedGradualPruner"])
    train_attached(run.scheduler, run.optimizer, 3)
    wrapped = CompressionScheduler.from_dict(
        run.schedule, model := Wrapper(), torch.optim.SGD(model.parameters(), lr=0.1), trace=SILENT
    )
    wrapped.load_state_dict(run.scheduler.state_dict())
    assert {name: mask.sum().item() for name, mask in wrapped.masks.items()} == {
        f"module.{name}": mask.sum().item() for name, mask in run.scheduler.masks.items()
    }


def test_a_state_of_another_schedule_is_refused_with_the_difference() -> None:
    state = Run(pruning(levels={"fc1.weight": 0.5})).state()[2]
    other = Run(pruning(levels={"fc1.weight": 0.6}))
    with pytest.raises(StateError) as error:
        other.scheduler.load_state_dict(state)
    assert "-      fc1.weight: 0.5\n+      fc1.weight: 0.6" in str(error.value)


def test_a_schedule_with_functions_in_it_is_resumed() -> None:
    def run() -> Run:
        from torch.optim.lr_scheduler import LambdaLR

        lr = ComponentSpec("lr_scheduler", "lr", LambdaLR, {"lr_lambda": lambda epoch: 0.5**epoch})
        run = Run(pruning())
        schedule = Schedule([lr], [PolicySpec("lr_scheduler", "lr", Window(0, 9))])
        run.scheduler = CompressionScheduler(schedule, run.model, run.optimizer, trace=SILENT)
        return run

    first, second = run(), run()
    train_explicit(first.scheduler, first.optimizer, range(3))
    second.scheduler.load_state_dict(through_a_file(first.scheduler.state_dict()))
    train_explicit(second.scheduler, second.optimizer, range(3, 5))
    assert second.optimizer.param_groups[0]["lr"] == 0.1 * 0.5**5


def test_an_lr_scheduler_that_ends_before_the_run_is_refused() -> None:
    schedule = with_lr(pruning(), "OneCycleLR", window(0, 9), max_lr=0.1, total_steps=3)
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ScheduleError, match=r"policies\[1\]: OneCycleLR 'lr' does not last for the run: .*4 times"):
        CompressionScheduler.from_dict(schedule, model, optimizer, epochs=5)
    with pytest.raises(ScheduleError, match="does not last for the run"):
        next(CompressionScheduler.from_dict(schedule, model, optimizer, trace=SILENT).epochs(5))
    assert len(list(CompressionScheduler.from_dict(schedule, model, optimizer, trace=SILENT).epochs(3))) == 3


def test_a_state_of_another_model_is_refused_and_nothing_changes() -> None:
    run = Run(SCHEDULES["SparsityLevelParameterPruner"])
    train_attached(run.scheduler, run.optimizer, 2)
    state = run.scheduler.state_dict()

    class Wider(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(12, 9), nn.Linear(9, 4)

    model = Wider()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    other = CompressionScheduler.from_dict(run.schedule, model, optimizer, trace=SILENT)
    with pytest.raises(StateError, match=r"the mask of 'fc1.weight' is \(8, 12\), the parameter is \(9, 12\)"):
        other.load_state_dict(state)
    assert dict(other.masks) == {}
    with pytest.raises(StateError, match="not the state of a scheduler: it has no 'schedule'"):
        other.load_state_dict({"masks_dict": {}})


def test_a_policy_that_never_acts_within_the_run_is_refused() -> None:
    run = Run(pruning(when=window(5, 9)))
    with pytest.raises(
        ScheduleError, match=r"policies\[0\]: never acts: its first epoch is 5, and a run of 5 ends with 4"
    ):
        next(run.scheduler.epochs(5))


def test_a_model_strict_loads_its_own_state_after_pruning() -> None:
    """Peers line 13."""
    run = Run(SCHEDULES["double copies"])
    train_attached(run.scheduler, run.optimizer, 3)
    other = MLP(seed=9)
    other.load_state_dict(through_a_file(run.model.state_dict()), strict=True)
    assert torch.equal(other.fc1.weight, run.model.fc1.weight)
