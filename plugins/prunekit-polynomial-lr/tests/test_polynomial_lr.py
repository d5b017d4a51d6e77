"""PolynomialLR: falls to zero, and rises again after T_max or stays there after total_iters."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from prunekit_polynomial_lr import PolynomialLR
from torch.optim import SGD, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from prunekit import ArgumentError, CompressionScheduler, ScheduleError, Trace
from prunekit.testing import check_component

EPOCHS = 7


def optimizer_of(*rates: float) -> SGD:
    return SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates], lr=0.1)


def schedule(window: Mapping[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    policy = {"lr_scheduler": {"instance_name": "lr"}, "starting_epoch": 0, "ending_epoch": EPOCHS, **(window or {})}
    return {"version": 1, "lr_schedulers": {"lr": {"class": "PolynomialLR", **keys}}, "policies": [policy]}


def attach(data: Mapping[str, Any], optimizer: SGD) -> CompressionScheduler:
    return CompressionScheduler.from_dict(data, torch.nn.Linear(1, 1), optimizer, trace=Trace(logger=None))


def outcome(window: Mapping[str, Any] | None = None, **keys: Any) -> list[float]:
    optimizer = optimizer_of(16.0)
    scheduler = attach(schedule(window, **keys), optimizer)
    return [optimizer.param_groups[0]["lr"] for _ in scheduler.epochs(EPOCHS)]


def stepped(cls: type, epochs: int, **keys: Any) -> list[float]:
    """The LR of each epoch, stepped as torch does it."""
    optimizer, seen = optimizer_of(16.0), []
    scheduler = cls(optimizer, **keys)
    for _ in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_with_t_max_the_rate_falls_to_zero_and_rises_again() -> None:
    assert outcome(T_max=4, power=2.0) == [16, 9, 4, 1, 0, 1, 4]


def test_t_max_moves_the_zero() -> None:
    assert outcome(T_max=2, power=2.0) == [16, 4, 0, 4, 16, 36, 64]


def test_the_power_bends_the_curve() -> None:
    assert [outcome(T_max=4, power=power) for power in (0, 1, 0.5, 3.0)] == [
        [16, 16, 16, 16, 16, 16, 16],
        [16, 12, 8, 4, 0, 4, 8],
        pytest.approx([16, 13.8564, 11.3137, 8, 0, 8, 11.3137]),
        [16, 6.75, 2, 0.25, 0, 0.25, 2],
    ]


def test_without_a_power_it_is_a_straight_line() -> None:
    assert outcome(T_max=4) == outcome(T_max=4, power=1.0)


def test_with_total_iters_the_rate_falls_to_zero_and_stays_there() -> None:
    assert outcome(total_iters=4, power=2.0) == [16, 9, 4, 1, 0, 0, 0]
    assert outcome(total_iters=2, power=2.0) == [16, 4, 0, 0, 0, 0, 0]


def test_a_late_policy_takes_the_lr_of_the_absolute_epoch() -> None:
    assert outcome({"starting_epoch": 2, "ending_epoch": 4}, T_max=4, power=2.0) == [16, 16, 16, 1, 0, 0, 0]


def test_each_group_of_the_optimizer_has_its_own_base() -> None:
    optimizer = optimizer_of(16.0, 32.0)
    scheduler = attach(schedule(T_max=4, power=2.0), optimizer)
    seen = [[group["lr"] for group in optimizer.param_groups] for _ in scheduler.epochs(3)]
    assert seen == [[16, 32], [9, 18], [4, 8]]


@pytest.mark.parametrize("first", [1, 4, 5])
@pytest.mark.parametrize("keys", [{"T_max": 4}, {"total_iters": 4}])
def test_a_resumed_run_equals_the_straight_one(first: int, keys: dict[str, int]) -> None:
    optimizer = optimizer_of(16.0)
    scheduler, before = attach(schedule(power=2.0, **keys), optimizer), []
    for epoch in range(first):
        scheduler.on_epoch_begin(epoch)
        before.append(optimizer.param_groups[0]["lr"])
        scheduler.on_epoch_end(epoch)
    resumed_optimizer = optimizer_of(99.0)
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed = attach(schedule(power=2.0, **keys), resumed_optimizer)
    resumed.load_state_dict(scheduler.state_dict())
    after = [resumed_optimizer.param_groups[0]["lr"] for _ in resumed.epochs(EPOCHS)]
    assert before + after == outcome(power=2.0, **keys)


@given(st.integers(1, 12), st.floats(0.1, 4), st.integers(1, 15))
def test_with_total_iters_the_lr_is_torchs_own(total_iters: int, power: float, epochs: int) -> None:
    keys = {"total_iters": total_iters, "power": power}
    own = stepped(lr_scheduler.PolynomialLR, epochs, **keys)
    assert stepped(PolynomialLR, epochs, **keys) == pytest.approx(own, rel=1e-9, abs=1e-9)


@given(st.integers(1, 12), st.floats(0, 4))
def test_with_t_max_the_curve_is_its_own_mirror_image(t_max: int, power: float) -> None:
    rates = stepped(PolynomialLR, 2 * t_max + 1, T_max=t_max, power=power)
    assert rates == pytest.approx(rates[::-1], rel=1e-6, abs=1e-9)
    assert min(rates) == rates[t_max]


def test_it_is_a_torch_scheduler_with_a_state() -> None:
    optimizer = optimizer_of(16.0)
    scheduler = PolynomialLR(optimizer, T_max=4, power=2.0)
    assert isinstance(scheduler, LRScheduler)
    optimizer.step()
    scheduler.step()
    restored = PolynomialLR(optimizer_of(16.0), total_iters=9)
    restored.load_state_dict(scheduler.state_dict())
    restored.step()
    assert restored.get_last_lr() == [4.0]


def test_last_epoch_continues_where_a_run_stood() -> None:
    optimizer = optimizer_of(9.0)
    optimizer.param_groups[0]["initial_lr"] = 16.0
    assert PolynomialLR(optimizer, T_max=4, power=2.0, last_epoch=1).get_last_lr() == [4.0]


def test_torchs_own_stays_reachable_under_its_distribution() -> None:
    data = schedule(total_iters=4, power=2.0)
    data["lr_schedulers"]["lr"]["class"] = "prunekit-polynomial-lr:PolynomialLR"
    optimizer = optimizer_of(16.0)
    scheduler = attach(data, optimizer)
    assert [optimizer.param_groups[0]["lr"] for _ in scheduler.epochs(EPOCHS)] == [16, 9, 4, 1, 0, 0, 0]


def test_what_does_not_fit_is_refused_at_load_with_its_position(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("""\
version: 1
lr_schedulers:
  neither: {class: PolynomialLR, power: 2}
  both: {class: PolynomialLR, T_max: 4, total_iters: 4}
  zero: {class: PolynomialLR, T_max: 0}
  negative: {class: PolynomialLR, total_iters: 4, power: -1}
  words: {class: PolynomialLR, T_max: four}
policies:
  - lr_scheduler: {instance_name: both}
    epochs: [0]
""")
    with pytest.raises(ScheduleError) as caught:
        CompressionScheduler.from_yaml(path, torch.nn.Linear(1, 1), optimizer_of(0.1), trace=Trace(logger=None))
    assert [f"{p.position.line}:{p.position.column} {p.path}: {p.message}" for p in caught.value.problems] == [
        "3:12 lr_schedulers.neither: PolynomialLR needs exactly one of 'T_max' and 'total_iters', got neither",
        "4:9 lr_schedulers.both: PolynomialLR needs exactly one of 'T_max' and 'total_iters', got both",
        "5:38 lr_schedulers.zero.T_max: must be at least 1, got 0",
        "6:58 lr_schedulers.negative.power: must be greater than or equal to 0, got -1",
        "7:39 lr_schedulers.words.T_max: must be a valid integer, got 'four'",
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "PolynomialLR needs exactly one of 'T_max' and 'total_iters', got neither"),
        ({"T_max": 4, "total_iters": 4}, "PolynomialLR needs exactly one of 'T_max' and 'total_iters', got both"),
        ({"total_iters": 0}, "total_iters: must be at least 1, got 0"),
        ({"T_max": 4, "power": -1.0}, "power: must not be negative, got -1.0"),
    ],
)
def test_the_constructor_itself_refuses_it(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{re.escape(message)}$"):
        PolynomialLR(optimizer_of(0.1), **keys)


# The laws of every component


def test_it_keeps_the_laws():
    check_component(PolynomialLR, T_max=6, power=2)
