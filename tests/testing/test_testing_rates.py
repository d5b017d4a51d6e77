"""The test class for LR schedulers: one whose rates are others, or depend on how a run came there, fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch.optim.lr_scheduler import ExponentialLR

from prunekit.testing import LRSchedulerTests

KEYS, RATES = {"gamma": 0.5}, [16.0, 8.0, 4.0, 2.0]


class Right(LRSchedulerTests):
    scheduler: Any = ExponentialLR
    rates = ((KEYS, RATES), ({"gamma": 1.0}, [16.0] * 4))


class OfAnotherSlope(Right):
    rates = ((KEYS, [16.0, 4.0, 1.0, 0.25]), ({"gamma": 1.0}, [16.0] * 4))


class Absolute(ExponentialLR):
    """Falls from 16, whatever the base."""

    def get_lr(self) -> list[Any]:
        return [16 * self.gamma**self.last_epoch for _ in self.base_lrs]


class WithoutABase(Right):
    scheduler = Absolute


class Forgetful(ExponentialLR):
    """Does not save how fast it falls."""

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().state_dict().items() if key != "gamma"}


class WithoutAMemory(Right):
    scheduler = Forgetful


class Counting(ExponentialLR):
    """Each instance has rates of its own."""

    made = 0

    def __init__(self, optimizer: Any, gamma: float, last_epoch: int = -1) -> None:
        Counting.made += 1
        self.number = Counting.made
        super().__init__(optimizer, gamma, last_epoch)

    def get_lr(self) -> list[Any]:
        return [base * self.gamma**self.last_epoch + self.number for base in self.base_lrs]


class OfItsInstance(Right):
    scheduler = Counting


@pytest.mark.parametrize(
    ("tests", "name", "test"),
    [
        (
            OfItsInstance,
            "relative",
            lambda tests, *line: tests.test_a_relative_policy_takes_the_rates_of_a_run_that_begins_with_it(*line),
        ),
        (
            OfItsInstance,
            "steps",
            lambda tests, *line: tests.test_the_rates_of_each_step_are_those_of_each_epoch(*line),
        ),
        (OfAnotherSlope, "rates", lambda tests, *line: tests.test_the_rates_of_each_epoch(*line)),
        (
            OfAnotherSlope,
            "late",
            lambda tests, *line: tests.test_a_late_policy_takes_the_rate_of_the_absolute_epoch(*line),
        ),
        (WithoutABase, "groups", lambda tests, *line: tests.test_each_group_of_the_optimizer_has_its_own_base(*line)),
        (
            WithoutAMemory,
            "state",
            lambda tests, *line: (
                tests.test_it_is_a_scheduler_of_torch_whose_state_fits_one_that_was_made_with_other_keys()
            ),
        ),
    ],
)
def test_what_is_wrong_fails(tests: type, name: str, test: Callable[..., None]) -> None:
    test(Right(), KEYS, RATES)
    with pytest.raises(AssertionError):
        test(tests(), *tests.rates[0])  # type: ignore[attr-defined]
