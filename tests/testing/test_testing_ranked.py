"""The test classes for ranked pruners: a pruner that ranks or counts otherwise fails by the test that says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from prunekit.components import Context
from prunekit.pruning import FixedSparsity, GradualSparsity, Groups, RankedPruner
from prunekit.testing import RankedOrderTests, RankedStructureTests


@dataclass(kw_only=True)
class Right(FixedSparsity, RankedPruner):
    """Ranks groups by their mean magnitude."""

    def scores(self, name: str, weight: Tensor, groups: Groups, context: Context) -> Tensor:
        return groups.mean_abs(weight)


@dataclass(kw_only=True)
class LargestFirst(Right):
    def scores(self, name: str, weight: Tensor, groups: Groups, context: Context) -> Tensor:
        return -groups.mean_abs(weight)


@dataclass(kw_only=True)
class OneTooMany(Right):
    def choose(self, name: str, scores: Tensor, sparsity: float, context: Context) -> Tensor | None:
        return super().choose(name, scores, sparsity + 1 / len(scores), context)


@dataclass(kw_only=True)
class LastOfEqualOnes(Right):
    def choose(self, name: str, scores: Tensor, sparsity: float, context: Context) -> Tensor | None:
        keep = super().choose(name, scores.flip(0), sparsity, context)
        return None if keep is None else keep.flip(0)


@dataclass(kw_only=True)
class Restless(Right):
    def scores(self, name: str, weight: Tensor, groups: Groups, context: Context) -> Tensor:
        return torch.rand(groups.number, generator=self.generator(context, name))


@dataclass(kw_only=True)
class RightGradually(GradualSparsity, RankedPruner):
    """The same along a curve."""

    scores = Right.scores


@dataclass(kw_only=True)
class BringsGroupsBack(GradualSparsity, RankedPruner):
    """Ranks others in every epoch."""

    def scores(self, name: str, weight: Tensor, groups: Groups, context: Context) -> Tensor:
        return torch.arange(groups.number).roll(context.progress.epoch)


def battery(cls: type, gradual: type | None) -> Any:
    """The tests of a pruner, to be called one by one."""
    return type("Battery", (RankedOrderTests, RankedStructureTests), {"pruner": cls, "gradual": gradual})()


def curve(tests: Any) -> None:
    tests.test_gradually_as_many_go_as_the_curve_says_and_none_comes_back("linear", [2, 4, 6, 7, 9])


@pytest.mark.parametrize(
    ("cls", "test"),
    [
        (LargestFirst, lambda tests: tests.test_the_groups_with_the_lowest_scores_go_and_of_equal_ones_the_first()),
        (LargestFirst, lambda tests: tests.test_which_groups_of_a_convolution({"group_type": "3D"}, 0, [0, 1])),
        (LastOfEqualOnes, lambda tests: tests.test_the_groups_with_the_lowest_scores_go_and_of_equal_ones_the_first()),
        (OneTooMany, lambda tests: tests.test_the_sparsity_says_how_many_go_rounded_down(0.25, 2)),
        (OneTooMany, lambda tests: tests.test_less_than_one_group_leaves_the_tensor_alone_and_the_trace_says_so(0.09)),
        (Restless, lambda tests: tests.test_groups_in_another_order_lose_the_same_ones()),
        (BringsGroupsBack, curve),
    ],
)
def test_what_is_wrong_fails(cls: type, test: Callable[[Any], None]) -> None:
    with pytest.raises(AssertionError):
        test(battery(cls, cls))
    test(battery(Right, RightGradually))


def test_without_a_gradual_class_there_are_no_tests_of_one() -> None:
    alone, both = battery(Right, None), battery(Right, RightGradually)
    assert alone.test_gradually_it_keeps_the_laws is None
    assert {name for name in dir(RankedOrderTests) if name.startswith("test_gradually")} == {
        name for name in dir(alone) if name.startswith("test_") and getattr(alone, name) is None
    }
    assert all(callable(getattr(both, name)) for name in dir(both) if name.startswith("test_"))
