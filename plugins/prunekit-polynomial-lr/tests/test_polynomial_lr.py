"""PolynomialLR: falls to zero, and rises again after T_max or stays there after total_iters."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from prunekit_polynomial_lr import PolynomialLR
from torch.optim import lr_scheduler

from prunekit import ArgumentError, CompressionScheduler, ScheduleError, Trace
from prunekit.testing import LRSchedulerTests, optimizer_of, rates_by_epoch


class TestPolynomialLR(LRSchedulerTests):
    scheduler = PolynomialLR
    rates = [  # noqa: RUF012
        # With T_max it falls to zero there, and rises again.
        ({"T_max": 4, "power": 2.0}, [16, 9, 4, 1, 0, 1, 4]),
        ({"T_max": 2, "power": 2.0}, [16, 4, 0, 4, 16, 36, 64]),
        ({"T_max": 4, "power": 0}, [16, 16, 16, 16, 16, 16, 16]),
        ({"T_max": 4, "power": 1}, [16, 12, 8, 4, 0, 4, 8]),
        ({"T_max": 4}, [16, 12, 8, 4, 0, 4, 8]),
        ({"T_max": 4, "power": 0.5}, [16, 16 * 0.75**0.5, 16 * 0.5**0.5, 8, 0, 8, 16 * 0.5**0.5]),
        ({"T_max": 4, "power": 3.0}, [16, 6.75, 2, 0.25, 0, 0.25, 2]),
        # With total_iters it stays there.
        ({"total_iters": 4, "power": 2.0}, [16, 9, 4, 1, 0, 0, 0]),
        ({"total_iters": 2, "power": 2.0}, [16, 4, 0, 0, 0, 0, 0]),
    ]

    @given(st.integers(1, 12), st.floats(0.1, 4), st.integers(1, 15))
    def test_with_total_iters_the_lr_is_torchs_own(self, total_iters: int, power: float, epochs: int) -> None:
        keys = {"total_iters": total_iters, "power": power}
        own = torchs_own(epochs, **keys)
        assert self.stepped(epochs, **keys) == pytest.approx(own, rel=1e-9, abs=1e-9)

    @given(st.integers(1, 12), st.floats(0, 4))
    def test_with_t_max_the_curve_is_its_own_mirror_image(self, t_max: int, power: float) -> None:
        rates = self.stepped(2 * t_max + 1, T_max=t_max, power=power)
        assert rates == pytest.approx(rates[::-1], rel=1e-6, abs=1e-9)
        assert min(rates) == rates[t_max]

    def test_its_state_says_too_which_of_the_two_it_is(self) -> None:
        scheduler, restored = self.make({"T_max": 4, "power": 2.0}), self.make({"total_iters": 9})
        scheduler.optimizer.step()
        scheduler.step()
        restored.load_state_dict(scheduler.state_dict())
        restored.step()
        assert restored.get_last_lr() == [4.0]

    def test_last_epoch_continues_where_a_run_stood(self) -> None:
        optimizer = optimizer_of(9.0)
        optimizer.param_groups[0]["initial_lr"] = 16.0
        assert PolynomialLR(optimizer, T_max=4, power=2.0, last_epoch=1).get_last_lr() == [4.0]

    def test_torchs_own_stays_reachable_under_its_distribution(self) -> None:
        name, keys = "prunekit-polynomial-lr:PolynomialLR", {"total_iters": 4, "power": 2.0}
        assert rates_by_epoch(name, keys, 7) == [16, 9, 4, 1, 0, 0, 0]


def torchs_own(epochs: int, **keys: Any) -> list[float]:
    """The rate in each epoch of torch's scheduler of the same name."""

    class Torchs(LRSchedulerTests):
        scheduler = lr_scheduler.PolynomialLR

    return Torchs().stepped(epochs, **keys)


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
