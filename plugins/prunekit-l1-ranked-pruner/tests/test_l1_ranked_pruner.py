"""L1 ranking: which groups go first, and where the card's schedule ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from prunekit_l1_ranked_pruner import L1RankedStructureParameterPruner, L1RankedStructureParameterPruner_AGP

from prunekit.testing import ConvNet, RankedOrderTests, RankedStructureTests, epochs_under_card, weights_model


class TestL1Ranking(RankedOrderTests, RankedStructureTests):
    pruner = L1RankedStructureParameterPruner
    gradual = L1RankedStructureParameterPruner_AGP
    lawful_gradually = {"weights": ["conv2.weight", "fc?.weight"], "granularity": {"dim": 0}}  # noqa: RUF012

    def test_the_rows_with_the_smallest_mean_magnitude_go(self):
        # Means 1.5, 2, 5 and 0.75. Sums: 3, 0, 0 and 1.5; L2 norms: 3, 2.8, 7.1 and 1.1: these rank differently.
        net: Any = weights_model(a=[[3.0, 0.0], [2.0, -2.0], [-5.0, 5.0], [1.0, 0.5]])
        run = self.scheduler(net)
        run.on_epoch_begin(0)
        assert net.a.weight.tolist() == [[0, 0], [2, -2], [-5, 5], [0, 0]]
        assert run.masks["a.weight"].tolist() == [[False] * 2, [True] * 2, [True] * 2, [False] * 2]

    @pytest.mark.parametrize("seed", range(3))
    def test_the_papers_procedure(self, seed: int):
        """Li et al., section 3.1: of each filter the sum of its absolute weights; sort; prune the m smallest."""
        torch.manual_seed(seed)
        weight = torch.randn(8, 3, 3, 3)
        sums = [sum(abs(float(value)) for value in kernel.flatten()) for kernel in weight]
        smallest = sorted(sorted(range(8), key=lambda j: sums[j])[:3])
        assert self.pruned(weights_model(a=weight), group_type="Filters", desired_sparsity=0.375) == smallest

    def test_the_sign_of_a_weight_does_not_matter(self):
        assert self.pruned(weights_model(a=[[2.0], [1.0], [1.0], [-1.0], [3.0]]), desired_sparsity=0.4) == [1, 2]
        weight = torch.arange(1.0, 13).reshape(6, 2, 1, 1) * torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1)
        assert self.pruned(weights_model(a=weight)) == [0, 1, 2]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
    def test_scores_are_told_apart_in_every_type(self, dtype: torch.dtype):
        """In bfloat16 a sum of 600 ones and one of 601 would be the same."""
        weight = torch.ones(4, 601, dtype=dtype)
        weight[2, 0] = weight[3, :2] = 0
        net: Any = weights_model(a=weight)
        assert self.pruned(net) == [2, 3]
        assert net.a.weight.dtype == dtype


# The card


def test_the_cards_first_schedule_ends_where_the_card_says():
    torch.manual_seed(0)
    net = ConvNet()
    (*_, run) = epochs_under_card(Path(__file__).parents[1] / "README.md", net, None, 31, lr=0.05, minibatches=2)
    zero = [int((~weight.flatten(1).any(1)).sum()) for weight in (net.conv1.weight, net.conv2.weight)]
    assert zero == [4, 4]
    assert [run.sparsity("conv1.weight"), run.sparsity("conv2.weight")] == [0.5, 0.5]
