"""MultiStepMultiGammaLR: the product of the gammas of the milestones that have passed."""

import re
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from prunekit_multistep_multigamma_lr import MultiStepMultiGammaLR

from prunekit import ArgumentError, CompressionScheduler, ScheduleError, Trace
from prunekit.testing import LRSchedulerTests, optimizer_of


class TestMultiStepMultiGammaLR(LRSchedulerTests):
    scheduler = MultiStepMultiGammaLR
    rates = [  # noqa: RUF012
        ({"milestones": [2, 4], "gammas": [0.5, 0.25]}, [16, 16, 8, 8, 2, 2]),
        ({"milestones": [1, 5], "gammas": [0.5, 0.25]}, [16, 8, 8, 8, 8, 2]),
        ({"milestones": [2, 4], "gammas": [2.0, 0.125]}, [16, 16, 32, 32, 4, 4]),
        # Two gammas at one milestone and one at the start all count.
        ({"milestones": [0, 3, 3], "gammas": [0.5, 0.5, 0.5]}, [8, 8, 8, 2, 2, 2]),
    ]

    def test_its_state_alone_says_what_the_rate_is(self) -> None:
        scheduler = self.make({"milestones": [1, 2], "gammas": [0.5, 0.5]})
        restored = self.make({"milestones": [7, 9], "gammas": [0.1, 0.1]})
        scheduler.optimizer.step()
        scheduler.step()
        restored.load_state_dict(scheduler.state_dict())
        restored.step()
        assert restored.get_last_lr() == [4.0]

    def test_last_epoch_continues_where_a_run_stood(self) -> None:
        optimizer = optimizer_of(8.0)
        optimizer.param_groups[0]["initial_lr"] = 8.0
        assert MultiStepMultiGammaLR(optimizer, [1, 2, 3], [0.5, 0.5, 0.5], last_epoch=1).get_last_lr() == [2.0]

    @given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 2)), max_size=4))
    def test_the_lr_is_the_base_times_the_gammas_that_have_passed(self, steps: list[tuple[int, float]]) -> None:
        steps = sorted(steps)
        milestones, gammas = [step for step, _ in steps], [gamma for _, gamma in steps]
        expected = [16 * prod(gamma for step, gamma in steps if step <= epoch) for epoch in range(10)]
        assert self.stepped(10, milestones=milestones, gammas=gammas) == pytest.approx(expected)


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
