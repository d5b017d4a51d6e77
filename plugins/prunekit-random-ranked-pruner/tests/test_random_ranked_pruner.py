"""Random ranking: draws that repeat, targets that do not compound, and where the card's schedule stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from prunekit_random_ranked_pruner import RandomRankedFilterPruner, RandomRankedFilterPruner_AGP
from torch import nn

from prunekit import Progress, Window
from prunekit.components import Context
from prunekit.testing import ConvNet, RankedCountTests, epochs_under_card, groups_gone, weights_model

FORTY = torch.arange(1.0, 41).reshape(40, 1)


class TestRandomRanking(RankedCountTests):
    pruner = RandomRankedFilterPruner
    gradual = RandomRankedFilterPruner_AGP

    def forty(self, epoch: int = 0, **keys: Any) -> list[int]:
        """What one epoch prunes of forty rows."""
        return self.begin(self.scheduler(weights_model(a=FORTY), **keys), epoch)["a"]

    # The draw

    def test_exactly_the_number_asked_for_goes_whatever_the_weights(self):
        chosen = [self.forty(seed=seed, desired_sparsity=0.3) for seed in range(20)]
        assert [len(rows) for rows in chosen] == [12] * 20
        assert len(set(map(tuple, chosen))) == 20

    def test_every_row_is_as_likely_to_go_as_any_other(self):
        """The definition: a random permutation. 400 draws of 10 of 40; each row is in about 100 of them."""
        pruner = RandomRankedFilterPruner(weights="*", granularity={"dim": 0}, desired_sparsity=0.25)
        hits, now = torch.zeros(40), Context(nn.Module(), {}, Progress(0), Window(0, 1), {}, {})
        for seed in range(400):
            pruner.seed = seed
            scores = pruner.scores("a.weight", FORTY, pruner.groups(FORTY), now)
            hits[scores.argsort()[:10]] += 1
        assert hits.sum() == 4000
        assert hits.min() > 60 and hits.max() < 140
        assert abs(float(torch.corrcoef(torch.stack([hits, FORTY[:, 0]]))[0, 1])) < 0.4, "large weights go as often"

    def test_draws_repeat_with_the_seed_whatever_the_application_draws(self):
        torch.manual_seed(1)
        first = self.forty()
        torch.manual_seed(2)
        assert self.forty() == first
        assert self.forty(seed=1) != first

    def test_epochs_and_parameters_have_draws_of_their_own(self):
        assert self.forty(epoch=0) != self.forty(epoch=1)
        gone = self.begin(self.scheduler(weights_model(a=FORTY, b=FORTY), weights="*"))
        assert gone["a"] != gone["b"]

    def test_followers_lose_other_groups_than_they_would_by_themselves(self):
        keys = {"weights": ["b.weight", "a.weight"], "group_dependency": "Leader"}
        led = self.begin(self.scheduler(weights_model(a=FORTY, b=FORTY), **keys))
        assert led["a"] != self.forty()

    # A target is a target

    def test_a_target_that_is_applied_again_is_no_larger_one(self):
        """Elsewhere each epoch masks others, and what was zero stays so until training moves it: 0.4 becomes 0.7."""
        net: Any = weights_model(a=FORTY)
        run, seen = self.scheduler(net, desired_sparsity=0.4), []
        for epoch in range(5):
            seen.append(self.begin(run, epoch)["a"])
            assert int((net.a.weight == 0).sum()) == 16
        assert seen == [seen[0]] * 5

    def test_rows_that_are_zero_go_first(self):
        weight = FORTY.clone()
        weight[[3, 30]] = 0
        for seed in range(10):
            assert {3, 30} <= set(self.pruned(weights_model(a=weight), seed=seed, desired_sparsity=0.1))

    def test_with_copies_every_epoch_masks_others_and_no_weight_is_lost(self):
        net: Any = weights_model(a=FORTY)
        args = {"mask_on_forward_only": True, "use_double_copies": True, "discard_masks_at_minibatch_end": True}
        run, seen = self.scheduler(net, args=args), []
        for epoch in range(3):
            run.on_epoch_begin(epoch)
            run.on_minibatch_begin(epoch, 0, 1)
            seen.append(tuple(groups_gone(net.a.weight != 0)))
            run.on_minibatch_end(epoch, 0, 1)
            assert torch.equal(net.a.weight, FORTY)
        assert len(set(seen)) == 3

    # Every other key

    @pytest.mark.parametrize(
        ("keys", "dim", "number"),
        [
            ({"group_type": "Filters"}, 0, 2),
            ({"group_type": "3D"}, 0, 2),
            ({"group_type": "Channels"}, 1, 4),
            ({"group_type": "Rows"}, 1, 4),
            ({"group_type": "Blocks", "kwargs": {"block_shape": [2, 8, 1, 1]}}, 0, 2),
            ({"granularity": {"dim": 1}}, 1, 4),
            ({"granularity": {"dim": 1, "size": 4}}, 1, 4),
            ({"granularity": {"shape": [4, 2]}}, 1, 4),
        ],
    )
    def test_which_groups(self, keys: dict[str, Any], dim: int, number: int):
        run = self.scheduler(weights_model(a=torch.ones(4, 8, 1, 1)), **keys)
        run.on_epoch_begin(0)
        assert len(groups_gone(run.masks["a.weight"], dim)) == number

    @pytest.mark.parametrize(
        ("keys", "place", "message"),
        [
            ({"noise": 0.5}, "noise", "has no argument 'noise'"),
            ({"group_type": "Filters"}, "weights", "'a.weight' has shape [4, 2] and no groups 'Filters'"),
            ({"granularity": {"dim": 1, "heads": 4}}, "weights", "its dimension 1 is not divided into 4 heads"),
        ],
    )
    def test_noise_and_groups_that_a_matrix_does_not_have_are_refused(self, keys: Any, place: str, message: str):
        ((where, said),) = self.problems(weights_model(a=torch.ones(4, 2)), **keys)
        assert (where, message in said) == (place, True), said


def test_the_cards_first_schedule_goes_where_the_card_says():
    torch.manual_seed(0)
    net, seen = ConvNet(), []
    for _ in epochs_under_card(Path(__file__).parents[1] / "README.md", net, None, 6, lr=0.05, minibatches=2):
        seen.append([groups_gone(w.flatten(1) != 0) for w in (net.conv1.weight, net.conv3.weight)])
    assert [len(rows) for rows in seen[0]] == [2, 4]
    assert seen == [seen[0]] * 6
