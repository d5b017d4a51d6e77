"""Rankings by name: which groups go first, rankings that are given or unknown, and where the card's schedule ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from prunekit_ranked_pruner import RankedStructurePruner, RankedStructurePruner_AGP
from torch import Tensor

from prunekit import ArgumentError
from prunekit.pruning import Groups
from prunekit.testing import ConvNet, RankedOrderTests, RankedStructureTests, epochs_under_card, weights_model

ROWS = [[3.0, 0.0], [2.0, -2.0], [-5.0, 5.0], [1.0, 0.5]]
"""Means 1.5, 2, 5 and 0.75; L2 norms 3, 2.8, 7.1 and 1.1; last weights 0, -2, 5 and 0.5."""


def last_weight(weight: Tensor, groups: Groups) -> Tensor:
    return weight[:, -1]


class TestRankingByName(RankedOrderTests, RankedStructureTests):
    pruner = RankedStructurePruner
    gradual = RankedStructurePruner_AGP
    lawful = {"weights": "conv?.weight", "group_type": "Filters", "ranking": "l1"}  # noqa: RUF012
    lawful_gradually = {"weights": "*.weight", "granularity": {"dim": 0}, "ranking": "l2"}  # noqa: RUF012

    def scheduler(self, *arguments: Any, **keys: Any) -> Any:
        return super().scheduler(*arguments, **{"ranking": "l1", **keys})

    @pytest.mark.parametrize(("ranking", "gone"), [("l1", [0, 3]), ("l2", [1, 3]), (last_weight, [0, 1])])
    def test_the_ranking_says_which_groups_go(self, ranking: Any, gone: list[int]):
        assert self.pruned(weights_model(a=ROWS), ranking=ranking) == gone

    @pytest.mark.parametrize(
        ("granularity", "kept"),
        [
            ("Rows", [[0, 0], [1, 1], [1, 1], [0, 0]]),
            ("Cols", [[1, 0], [1, 0], [1, 0], [1, 0]]),
            ("Elements", [[1, 0], [0, 1], [1, 1], [0, 0]]),
        ],
    )
    def test_the_groups_may_have_a_name(self, granularity: str, kept: list[list[int]]):
        assert self.mask(weights_model(a=ROWS), granularity=granularity).int().tolist() == kept

    def test_a_ranking_that_nobody_has_is_refused(self):
        ((place, message),) = self.problems(weights_model(a=ROWS), ranking="l3")
        assert (place, message.partition(";")[0]) == ("ranking", "no ranking is registered as 'l3'")
        ((place, message),) = self.problems(weights_model(a=ROWS), ranking=3)
        assert (place, message) == ("ranking", "must be the name of a ranking, got 3")
        with pytest.raises(ArgumentError, match="ranking: prunekit has no ranking 'l3'; "):
            RankedStructurePruner(weights="*", granularity="Rows", desired_sparsity=0.5, ranking="l3")

    def test_filters_of_a_transposed_convolution_are_refused_by_that_name(self):
        model = torch.nn.Sequential(torch.nn.ConvTranspose2d(2, 4, 3))
        ((_, message),) = self.problems(model, weights="0.weight", granularity="Filters")
        assert "in a ConvTranspose2d: dimension 0 is inputs and 1 outputs; say granularity: {dim: 0}" in message


# The card


def test_the_cards_first_schedule_ends_where_the_card_says():
    torch.manual_seed(0)
    net = ConvNet()
    (*_, run) = epochs_under_card(Path(__file__).parents[1] / "README.md", net, None, 31, lr=0.05, minibatches=2)
    zero = [int((~weight.flatten(1).any(1)).sum()) for weight in (net.conv1.weight, net.conv2.weight)]
    assert zero == [4, 4]
    assert [run.sparsity("conv1.weight"), run.sparsity("conv2.weight")] == [0.5, 0.5]
