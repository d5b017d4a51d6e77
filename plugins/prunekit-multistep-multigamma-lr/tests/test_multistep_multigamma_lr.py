"""MultiStepMultiGammaLR: the product of the gammas of the milestones that have passed."""

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from prunekit_multistep_multigamma_lr import MultiStepMultiGammaLR
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler

from prunekit import ArgumentError, CompressionScheduler, ScheduleError, Trace
from prunekit.testing import check_component

EPOCHS = 6


def optimizer_of(*rates: float) -> SGD:
    return SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates], lr=0.1)


def schedule(**keys: Any) -> dict[str, Any]:
    window = {"starting_epoch": 0, "ending_epoch": EPOCHS, **keys.pop("window", {})}
    component = {"class": "MultiStepMultiGammaLR", "milestones": [2, 4], "gammas": [0.5, 0.25], **keys}
    policy = {"lr_scheduler": {"instance_name": "lr"}, **window}
    return {"version": 1, "lr_schedulers": {"lr": component}, "policies": [policy]}


def attach(data: Mapping[str, Any], optimizer: SGD) -> CompressionScheduler:
    return CompressionScheduler.from_dict(data, torch.nn.Linear(1, 1), optimizer, trace=Trace(logger=None))


def drive(scheduler: CompressionScheduler, optimizer: SGD, epochs: int = EPOCHS) -> list[list[float]]:
    return [[group["lr"] for group in optimizer.param_groups] for _ in scheduler.epochs(epochs)]


def outcome(**keys: Any) -> list[float]:
    optimizer = optimizer_of(8.0)
    return [lr for (lr,) in drive(attach(schedule(**keys), optimizer), optimizer)]


def direct(epochs: int, milestones: list[int], gammas: list[float]) -> list[float]:
    """The LR of each epoch, stepped as torch does it."""
    optimizer, seen = optimizer_of(8.0), []
    scheduler = MultiStepMultiGammaLR(optimizer, milestones, gammas)
    for _ in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_each_milestone_multiplies_by_its_own_gamma() -> None:
    assert outcome() == [8, 8, 4, 4, 1, 1]


def test_the_milestones_move_the_steps() -> None:
    assert outcome(milestones=[1, 5]) == [8, 4, 4, 4, 4, 1]


def test_the_gammas_change_their_height() -> None:
    assert outcome(gammas=[2.0, 0.125]) == [8, 8, 16, 16, 2, 2]


def test_two_gammas_at_one_milestone_and_one_at_the_start_all_count() -> None:
    assert outcome(milestones=[0, 3, 3], gammas=[0.5, 0.5, 0.5]) == [4, 4, 4, 1, 1, 1]


def test_a_late_policy_takes_the_lr_of_the_absolute_epoch() -> None:
    assert outcome(window={"starting_epoch": 3}) == [8, 8, 8, 8, 1, 1]


def test_each_group_of_the_optimizer_has_its_own_base() -> None:
    optimizer = optimizer_of(8.0, 16.0)
    assert drive(attach(schedule(), optimizer), optimizer, 5) == [[8, 16], [8, 16], [4, 8], [4, 8], [1, 2]]


@pytest.mark.parametrize("first", [1, 2, 4])
def test_a_resumed_run_equals_the_straight_one(first: int) -> None:
    optimizer = optimizer_of(8.0)
    scheduler = attach(schedule(), optimizer)
    before = []
    for epoch in range(first):
        scheduler.on_epoch_begin(epoch)
        before.append(optimizer.param_groups[0]["lr"])
        scheduler.on_epoch_end(epoch)
    resumed_optimizer = optimizer_of(99.0)
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed = attach(schedule(), resumed_optimizer)
    resumed.load_state_dict(scheduler.state_dict())
    assert before + [lr for (lr,) in drive(resumed, resumed_optimizer)] == outcome()


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 2)), max_size=4))
def test_the_lr_is_the_base_times_the_gammas_that_have_passed(steps: list[tuple[int, float]]) -> None:
    steps = sorted(steps)
    milestones, gammas = [step for step, _ in steps], [gamma for _, gamma in steps]
    expected = [8 * prod(gamma for step, gamma in steps if step <= epoch) for epoch in range(10)]
    assert direct(10, milestones, gammas) == pytest.approx(expected)


def test_it_is_a_torch_scheduler_with_a_state() -> None:
    optimizer = optimizer_of(8.0)
    scheduler = MultiStepMultiGammaLR(optimizer, [1, 2], [0.5, 0.5])
    assert isinstance(scheduler, LRScheduler)
    optimizer.step()
    scheduler.step()
    restored = MultiStepMultiGammaLR(optimizer_of(8.0), [7, 9], [0.1, 0.1])
    restored.load_state_dict(scheduler.state_dict())
    restored.step()
    assert restored.get_last_lr() == [2.0]


def test_last_epoch_continues_where_a_run_stood() -> None:
    optimizer = optimizer_of(8.0)
    optimizer.param_groups[0]["initial_lr"] = 8.0
    assert MultiStepMultiGammaLR(optimizer, [1, 2, 3], [0.5, 0.5, 0.5], last_epoch=1).get_last_lr() == [2.0]


def test_what_does_not_fit_is_refused_at_load_with_its_position(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("""\
version: 1
lr_schedulers:
  unsorted: {class: MultiStepMultiGammaLR, milestones: [4, 2], gammas: [0.1, 0.2]}
  fewer: {class: MultiStepMultiGammaLR, milestones: [2, 4], gammas: [0.1]}
  words: {class: MultiStepMultiGammaLR, milestones: [2, four], gammas: [0.1, 0.2]}
policies:
  - lr_scheduler: {instance_name: fewer}
    epochs: [0]
""")
    with pytest.raises(ScheduleError) as caught:
        CompressionScheduler.from_yaml(path, torch.nn.Linear(1, 1), optimizer_of(0.1), trace=Trace(logger=None))
    assert [f"{p.position.line}:{p.position.column} {p.path}: {p.message}" for p in caught.value.problems] == [
        "3:56 lr_schedulers.unsorted.milestones: must be ascending, got [4, 2]",
        "4:69 lr_schedulers.fewer.gammas: must be as many as the 2 milestones, got 1",
        "5:57 lr_schedulers.words.milestones[1]: must be a valid integer, got 'four'",
    ]


@pytest.mark.parametrize(
    ("milestones", "gammas", "message"),
    [
        ([4, 2], [0.1, 0.1], "milestones: must be ascending, got [4, 2]"),
        ([2], [0.1, 0.1], "gammas: must be as many as the 1 milestones, got 2"),
    ],
)
def test_the_constructor_itself_refuses_it(milestones: list[int], gammas: list[float], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{re.escape(message)}$"):
        MultiStepMultiGammaLR(optimizer_of(0.1), milestones, gammas)


# The laws of every component


def test_it_keeps_the_laws():
    check_component(MultiStepMultiGammaLR, milestones=[2, 4], gammas=[0.5, 0.1])
