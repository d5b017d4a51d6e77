"""L2 ranking: which groups go first, where it differs from L1, and where the card's schedule ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_l2_ranked_pruner import L2RankedStructureParameterPruner, L2RankedStructureParameterPruner_AGP

from prunekit.testing import (
    ConvNet,
    RankedOrderTests,
    RankedStructureTests,
    epochs_under_card,
    groups_gone,
    weights_model,
)


class TestL2Ranking(RankedOrderTests, RankedStructureTests):
    pruner = L2RankedStructureParameterPruner
    gradual = L2RankedStructureParameterPruner_AGP

    def test_the_rows_with_the_smallest_l2_norm_go(self):
        # Norms 3, 2.8, 7.1 and 1.1. By the mean magnitude (1.5, 2, 5, 0.75) the first would go in place of the second.
        net: Any = weights_model(a=[[3.0, 0.0], [2.0, -2.0], [-5.0, 5.0], [1.0, 0.5]])
        self.begin(self.scheduler(net))
        assert net.a.weight.tolist() == [[3, 0], [0, 0], [-5, 5], [0, 0]]

    def test_the_score_is_the_norm_over_the_number_of_elements(self):
        """Semantics, 1.3: L2 / n."""
        weight = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
        pruner = L2RankedStructureParameterPruner(weights="*", granularity={"dim": 0}, desired_sparsity=0.5)
        assert pruner.scores("a.weight", weight, pruner.groups(weight), None).tolist() == [2.5, 5]

    @pytest.mark.parametrize("seed", range(3))
    def test_the_papers_procedure_with_the_other_norm(self, seed: int):
        torch.manual_seed(seed)
        weight = torch.randn(8, 3, 3, 3)
        norms = [sum(float(value) ** 2 for value in kernel.flatten()) ** 0.5 for kernel in weight]
        smallest = sorted(sorted(range(8), key=lambda j: norms[j])[:3])
        assert self.pruned(weights_model(a=weight), group_type="Filters", desired_sparsity=0.375) == smallest

    def test_the_sign_of_a_weight_does_not_matter(self):
        assert self.pruned(weights_model(a=[[2, 2], [1, 1], [-1, -1], [1, 1], [3, 3]]), desired_sparsity=0.4) == [1, 2]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_norms_are_told_apart_in_every_type_and_do_not_overflow(self, dtype: torch.dtype):
        """The square of 300 is more than the largest number of 16 bits."""
        weight = torch.full((4, 601), 300.0, dtype=dtype)
        weight[2, 0] = weight[3, :2] = 0
        assert self.pruned(weights_model(a=weight)) == [2, 3]

    def test_the_leader_is_asked_at_every_pruning(self):
        """Elsewhere, with a constant target, only at the first."""
        net: Any = self.model(a=[1, 2, 3, 4], b=[1, 1, 1, 1])
        run = self.scheduler(net, weights=["a.weight", "b.weight"], group_dependency="Leader")
        assert self.begin(run, 0)["b"] == [0, 1]
        with torch.no_grad():
            net.a.weight.copy_(torch.tensor([[4.0], [3], [2], [1]]).expand(4, 2))
        assert self.begin(run, 1)["b"] == [2, 3]

    @settings(deadline=None, max_examples=50)
    @given(st.permutations(range(6)), st.floats(0.2, 0.99), st.sampled_from([0.5, -3.0]))
    def test_the_scale_of_weights_does_not_matter(self, order: list[int], sparsity: float, scale: float):
        weight = torch.arange(1.0, 13).reshape(6, 2)
        straight = self.pruned(weights_model(a=weight), desired_sparsity=sparsity)
        permuted = self.pruned(weights_model(a=scale * weight[order]), desired_sparsity=sparsity)
        assert sorted(order[place] for place in permuted) == straight

    def test_the_norm_can_not_be_chosen(self):
        ((place, message),) = self.problems(self.model(a=[1, 2]), magnitude_fn="l1")
        assert (place, "has no argument 'magnitude_fn'" in message) == ("magnitude_fn", True)


# The card


def test_the_cards_first_schedule_goes_where_the_card_says():
    torch.manual_seed(0)
    net, seen = ConvNet(), []
    for _ in epochs_under_card(Path(__file__).parents[1] / "README.md", net, None, 9, lr=0.05, minibatches=2):
        seen.append([len(groups_gone(w != 0, 1)) for w in (net.conv2.weight, net.conv3.weight)])
    assert seen == [[0, 0]] * 4 + [[2, 2]] * 4 + [[4, 4]]
