"""Windows in steps beside those in epochs: what must be the same, when both meet, and what is known of the end."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from helpers import MLP, SILENT, batches, pruning, train_attached, window
from torch.optim.lr_scheduler import LRScheduler

from prunekit import CompressionScheduler, Schedule, ScheduleError, Trace, load_plugins
from prunekit.engine.building.build import build
from prunekit.engine.rates.schedule import LearningRateSchedule
from prunekit.training.loop import Warnings

STEPS, EPOCHS = 4, 6
"""In an epoch; in a run."""


def steps(start: int, end: int, frequency: int = 1) -> dict[str, int]:
    return {"starting_step": start, "ending_step": end, "frequency": frequency}


def in_steps(when: dict[str, int], *, throughout: bool) -> dict[str, int]:
    """The same window in steps: the first of each active epoch, or all steps `throughout`."""
    start, end, frequency = when["starting_epoch"] * STEPS, when["ending_epoch"] * STEPS, when["frequency"]
    return steps(start, end, 1 if throughout else frequency * STEPS)


def one(kind: str, when: dict[str, int], **keys: Any) -> dict[str, Any]:
    policies = [{kind: {"instance_name": "it"}, **when}]
    return {"version": 1, f"{kind}s": {"it": keys}, "policies": policies}


def borders(data: dict[str, Any]) -> list[Any]:
    """Masks, weights and learning rate at the end of each epoch."""
    model, seen = MLP(), list[Any]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = CompressionScheduler.from_dict(data, model, optimizer, trace=SILENT)

    def look(epoch: int) -> None:
        masks = {name: mask.tolist() for name, mask in scheduler.masks.items()}
        seen.append((masks, [p.tolist() for p in model.parameters()], optimizer.param_groups[0]["lr"]))

    train_attached(scheduler, optimizer, EPOCHS, batches(STEPS), look)
    return seen


GRADUAL = {"initial_sparsity": 0.1, "final_sparsity": 0.8, "weights": ["fc?.weight"]}
FALLING = {"curve": "linear", "from": 0.5, "to": 0.5}


@pytest.mark.parametrize(
    ("kind", "when", "keys"),
    [
        ("pruner", window(1, 6, 2), {"class": "AutomatedGradualPruner", **GRADUAL}),
        ("pruner", window(1, 5), {"class": "GlobalMagnitudePruner_AGP", **GRADUAL}),
        ("pruner", window(0, 6, 3), {"class": "SparsityLevelParameterPruner", "levels": {"fc?.weight": FALLING}}),
        ("pruner", window(2, 5), {"class": "SensitivityPruner", "sensitivities": {"fc1.weight": 0.8}}),
        ("pruner", window(2, 5), {"class": "MagnitudeParameterPruner", "thresholds": {"fc1.weight": 0.2}}),
        ("regularizer", window(1, 4), {"class": "L1Regularizer", "reg_regims": {"fc1.weight": 0.01}}),
        ("quantizer", window(2, 6), {"class": "DorefaQuantizer", "bits_weights": 4, "bits_activations": 8}),
    ],
    ids=lambda value: value.get("class") if isinstance(value, dict) else None,
)
def test_a_window_in_steps_does_what_the_same_one_in_epochs_does(
    kind: str, when: dict[str, int], keys: dict[str, Any]
) -> None:
    as_steps = in_steps(when, throughout=kind != "pruner")
    assert borders(one(kind, as_steps, **keys)) == borders(one(kind, when, **keys))


@pytest.mark.parametrize(
    ("class_", "keys", "of_time"),
    [
        ("StepLR", {"step_size": 2, "gamma": 0.5}, ["step_size"]),
        ("MultiStepLR", {"milestones": [1, 4], "gamma": 0.5}, ["milestones"]),
        ("ConstantLR", {"factor": 0.5, "total_iters": 3}, ["total_iters"]),
    ],
)
def test_rates_that_move_at_the_borders_of_epochs_are_those_of_the_same_steps(
    class_: str, keys: dict[str, Any], of_time: list[str]
) -> None:
    def longer(value: Any) -> Any:
        return [number * STEPS for number in value] if isinstance(value, list) else value * STEPS

    as_steps = keys | {key: longer(keys[key]) for key in of_time}
    found = borders(one("lr_scheduler", steps(0, EPOCHS * STEPS), **{"class": class_}, **as_steps))
    assert found == borders(one("lr_scheduler", window(0, EPOCHS), **{"class": class_}, **keys))


# Both at one time


def two(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two pruners of one parameter."""
    half = {"class": "SparsityLevelParameterPruner", "levels": {"fc1.weight": 0.5}}
    policies = [{"pruner": {"instance_name": name}, **when} for name, when in (("a", first), ("b", second))]
    return {"version": 1, "pruners": {"a": half, "b": half}, "policies": policies}


@pytest.mark.parametrize(
    ("first", "second", "when"),
    [
        (window(0, 2), steps(8, 20), None),
        (window(0, 2), steps(7, 20), "epoch 1, step 7"),
        (steps(7, 20), window(0, 2), "epoch 1, step 7"),
        ({"epochs": [1, 4]}, {"steps": [3, 8, 15]}, None),
        ({"epochs": [1, 4]}, {"steps": [3, 8, 19]}, "epoch 4, step 19"),
        (window(0, 300, 2), steps(4, 10**6, 8), None),
    ],
)
def test_with_a_known_number_of_steps_it_is_decided_before_training_whether_two_policies_meet(
    first: dict[str, Any], second: dict[str, Any], when: str | None
) -> None:
    schedule = Schedule.from_dict(two(first, second))
    built = build(schedule, load_plugins().registry, MLP(), steps_per_epoch=STEPS)
    told = [f"policies[0] ('a') prunes 'fc1.weight' in {when} too; two policies may not"] if when else []
    assert ([problem.message for problem in built.problems], built.warnings) == (told, [])


def test_the_number_of_steps_was_wrong_and_the_policies_meet_in_training() -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = two(window(0, 2), steps(5, 20))
    scheduler = CompressionScheduler.from_dict(data, model, optimizer, steps_per_epoch=2, trace=SILENT)
    with pytest.raises(ScheduleError, match=r"in epoch 1, step 5 too; two policies may not"):
        train_attached(scheduler, optimizer, 3, batches(STEPS))


# The end of a run


def told(data: dict[str, Any], length: int, **options: Any) -> list[tuple[str, str]]:
    """What a run of so many epochs is warned of: after which event, and what."""
    said: list[tuple[str, str]] = []
    moment = "at load"
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trace = Trace(logger=Warnings(lambda text: said.append((moment, text.removeprefix("<dict>: policies[0]: ")))))
    scheduler = CompressionScheduler.from_dict(data, model, optimizer, trace=trace, **options)
    moment = "in epoch 0"

    def after(epoch: int) -> None:
        nonlocal moment
        moment = f"in epoch {epoch + 1}"

    train_attached(scheduler, optimizer, length, batches(STEPS), after)
    assert set(scheduler.endings) <= {f"<dict>: policies[0]: {text}" for _, text in said}
    return said


@pytest.mark.parametrize(
    ("kind", "keys", "comes_to"),
    [
        ("pruner", {"class": "SparsityLevelParameterPruner", "levels": {"fc1.weight": FALLING}}, None),
        (
            "pruner",
            {"class": "SparsityLevelParameterPruner", "levels": {"fc1.weight": FALLING | {"to": 0.9}}},
            "levels.fc1.weight 0.6 and not to 0.9",
        ),
        (
            "pruner",
            {"class": "GlobalMagnitudePruner", "weights": ["*"], "desired_sparsity": FALLING | {"to": 0.9}},
            "desired_sparsity 0.6 and not to 0.9",
        ),
        (
            "regularizer",
            {"class": "L1Regularizer", "reg_regims": {"fc1.weight": FALLING | {"to": 0.1}}},
            "reg_regims.fc1.weight 0.4 and not to 0.1",
        ),
    ],
)
def test_an_argument_along_a_curve_that_the_run_cuts_off_is_told_with_its_last_value(
    kind: str, keys: dict[str, Any], comes_to: str | None
) -> None:
    what = f"a run of 2 epochs cuts it off: 'it' comes to {comes_to}"
    assert told(one(kind, window(0, 5), **keys), 2) == ([("in epoch 0", what)] if comes_to else [])


LONG = one("pruner", steps(0, 21, 5), **{"class": "AutomatedGradualPruner", **GRADUAL})
CUT = "a run of 3 epochs cuts it off: 'it' comes to sparsity 0.7125 and not to 0.8"


@pytest.mark.parametrize(
    ("options", "moment"),
    [
        ({"epochs": 3, "steps_per_epoch": STEPS}, "at load"),
        ({"steps_per_epoch": STEPS}, "in epoch 0"),
        ({}, "in epoch 0"),
        ({"epochs": 3}, "in epoch 0"),
        ({"steps_per_epoch": 40}, "in epoch 3"),
    ],
)
def test_a_window_in_steps_that_is_cut_off_is_told_as_soon_as_the_length_of_the_run_is_known(
    options: dict[str, Any], moment: str
) -> None:
    assert told(LONG, 3, **options) == [(moment, CUT)]


def test_a_window_in_steps_that_is_never_reached_is_told_when_the_first_epoch_has_ended() -> None:
    never = "never acts: its first step is 20, and a run of 12 ends with 11"
    assert told(pruning(when=steps(20, 30)), 3) == [("in epoch 0", never)]


# Rates that have to last


class Listed(LRScheduler):
    """A rate for each step of a list, which can't be left out."""

    def __init__(self, optimizer: Any, number: int, strict: bool = False, last_epoch: int = -1) -> None:
        self.number, self.strict, self.asked = number, strict, 0
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        if self.strict and self.last_epoch != self.asked:
            raise ValueError(f"step {self.asked} left out")
        self.asked += 1
        return [[1.0][self.last_epoch >= self.number]]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("length", [50, 30_000])
def test_a_scheduler_of_rates_lasts_as_long_as_its_plan(length: int, strict: bool) -> None:
    rates = LearningRateSchedule(Listed, {"number": length, "strict": strict}, None)
    rates.rehearse(length - 1)
    with pytest.raises(IndexError):
        rates.rehearse(length)


def test_a_million_steps_are_looked_through_in_no_time() -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = one("lr_scheduler", steps(0, 10**6), **{"class": "OneCycleLR", "max_lr": 0.1, "total_steps": 10**6 - 1})
    start = time.process_time()
    with pytest.raises(ScheduleError, match="does not last for the run"):
        CompressionScheduler.from_dict(data, model, optimizer, epochs=100, steps_per_epoch=10**4, trace=SILENT)
    assert time.process_time() - start < 1.5
