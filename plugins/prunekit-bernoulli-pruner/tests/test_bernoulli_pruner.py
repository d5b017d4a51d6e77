"""Bernoulli pruning: coins that repeat, scales that the forward pass alone sees; and what is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_bernoulli_pruner import BernoulliFilterPruner, BernoulliFilterPruner_AGP
from torch import Tensor, nn

from prunekit import CompressionScheduler
from prunekit.testing import ConvNet, RankedPrunerTests, epochs_under_card, groups_gone, weights_model

DROP_FILTER = {
    "mini_batch_pruning_frequency": 1,
    "mask_on_forward_only": True,
    "use_double_copies": True,
    "discard_masks_at_minibatch_end": True,
}
FORTY = torch.arange(1.0, 41).reshape(40, 1)


class TestBernoulliPruner(RankedPrunerTests):
    pruner = BernoulliFilterPruner
    gradual = BernoulliFilterPruner_AGP

    def dropped(self, net: nn.Module, epochs: int = 1, dim: int = 0, **keys: Any) -> list[list[int]]:
        """What each epoch drops of `a.weight`."""
        run, seen = self.scheduler(net, range(epochs), **keys), []
        for epoch in range(epochs):
            run.on_epoch_begin(epoch)
            seen.append(groups_gone(run.masks["a.weight"], dim) if run.masks else [])
        return seen

    # The coins

    def test_each_row_is_dropped_by_a_coin_of_its_own(self):
        """The definition: m ~ Bernoulli(1 - p). The number is binomial: mean p · n, variance p · (1 - p) · n."""
        epochs = 400
        seen = self.dropped(weights_model(a=FORTY), epochs, desired_sparsity=0.25)
        numbers = torch.tensor([float(len(rows)) for rows in seen])
        assert float(numbers.mean()) == pytest.approx(10, abs=0.5)
        assert float(numbers.var()) == pytest.approx(7.5, rel=0.25)
        hits = torch.zeros(40)
        for rows_ in seen:
            hits[rows_] += 1
        assert hits.min() > 60 and hits.max() < 140, "each row in about 100 of 400"

    @pytest.mark.parametrize(("probability", "number"), [(0.1, 4), (0.5, 20), (0.9, 36)])
    def test_the_probability_says_how_many_go_on_average(self, probability: float, number: int):
        seen = self.dropped(weights_model(a=FORTY), 100, desired_sparsity=probability)
        assert sum(map(len, seen)) / 100 == pytest.approx(number, abs=1)

    def test_where_all_would_go_one_stays(self):
        assert [len(rows) for rows in self.dropped(weights_model(a=[[1.0], [2], [3]]), 20, desired_sparsity=1)] == [
            2
        ] * 20
        assert self.dropped(weights_model(a=[[1.0]]), 20, desired_sparsity=0.9) == [[]] * 20

    def test_a_probability_of_0_leaves_the_tensor_alone(self):
        run = self.scheduler(weights_model(a=FORTY), desired_sparsity=0)
        run.on_epoch_begin(0)
        assert dict(run.masks) == {}

    def test_coins_of_which_none_drops_a_row_take_the_mask_before_them_away(self):
        """Of two rows each may go, or none."""
        run, seen = self.scheduler(weights_model(a=[[1.0], [2]]), range(20)), []
        for epoch in range(20):
            run.on_epoch_begin(epoch)
            seen.append(tuple(groups_gone(run.masks["a.weight"])))
        assert set(seen) == {(), (0,), (1,)}

    def test_coins_repeat_with_the_seed_whatever_the_application_draws(self):
        torch.manual_seed(1)
        first = self.dropped(weights_model(a=FORTY), 3)
        torch.manual_seed(2)
        assert self.dropped(weights_model(a=FORTY), 3) == first
        assert self.dropped(weights_model(a=FORTY), 3, seed=1) != first
        assert len(set(map(tuple, first))) == 3, "each epoch tosses anew"

    def test_every_parameter_has_its_coins_and_a_follower_its_leaders(self):
        run = self.scheduler(weights_model(a=FORTY, b=FORTY), weights="*")
        run.on_epoch_begin(0)
        one, other = map(groups_gone, run.masks.values())
        assert one != other
        led = self.scheduler(
            weights_model(a=FORTY, b=torch.ones(40, 3)), weights=["b.weight", "a.weight"], group_dependency="Leader"
        )
        led.on_epoch_begin(0)
        assert groups_gone(led.masks["a.weight"]) == groups_gone(led.masks["b.weight"]) == other

    # The scale

    def seen_by_the_forward_pass(
        self, net: nn.Module, run: CompressionScheduler, epoch: int = 0, minibatch: int = 0
    ) -> Tensor:
        run.on_minibatch_begin(epoch, minibatch, 4)
        weight = net.a.weight.detach().clone()
        run.before_parameter_optimization(epoch, minibatch, 4)
        return weight

    def test_what_is_kept_is_scaled_by_n_over_kept_in_the_forward_pass_alone(self):
        net = weights_model(a=torch.full((8, 2), 3.0))
        run = self.scheduler(net)
        run.on_epoch_begin(0)
        kept = 8 - len(groups_gone(run.masks["a.weight"]))
        assert 0 < kept < 8
        weight = self.seen_by_the_forward_pass(net, run)
        assert weight.unique().tolist() == [0, 3 * 8 / kept]
        assert weight.sum() == pytest.approx(8 * 2 * 3), "as large as without dropping"
        assert net.a.weight.unique().tolist() == [0, 3]

    def test_followers_are_scaled_as_their_leader_is(self):
        net = weights_model(a=torch.ones(8, 1), b=torch.ones(8, 3))
        run = self.scheduler(net, weights=["a.weight", "b.weight"], group_dependency="Leader")
        run.on_epoch_begin(0)
        run.on_minibatch_begin(0, 0, 1)
        assert net.a.weight.max() == net.b.weight.max() > 1
        assert torch.equal(net.b.weight, net.a.weight.expand(8, 3))

    def test_drop_filter_drops_others_for_every_mini_batch_and_loses_no_weight(self):
        net = weights_model(a=FORTY)
        run = self.scheduler(net, args=DROP_FILTER)
        own, seen = FORTY.clone(), []
        for epoch in range(2):
            run.on_epoch_begin(epoch)
            for minibatch in range(4):
                weight = self.seen_by_the_forward_pass(net, run, epoch, minibatch)
                kept = weight != 0
                assert torch.allclose(weight, own * kept * (40 / int(kept.sum())))
                seen.append(tuple(groups_gone(kept)))
                with torch.no_grad():
                    net.a.weight.add_(1)
                own += 1
                run.on_minibatch_end(epoch, minibatch, 4)
                assert torch.equal(net.a.weight, own)
                assert dict(run.masks) == {}
        assert len(set(seen)) == 8

    def test_without_copies_a_dropped_row_begins_at_zero_when_it_comes_back(self):
        net = weights_model(a=FORTY)
        run = self.scheduler(net)
        run.on_epoch_begin(0)
        first = set(groups_gone(run.masks["a.weight"]))
        run.on_epoch_begin(1)
        second = set(groups_gone(run.masks["a.weight"]))
        back = sorted(first - second)
        assert back
        assert not net.a.weight[back].any()

    def test_masked_gradients_are_scaled_too(self):
        """d loss / d w = d loss / d w' · m · n / kept, for w' = w · m · n / kept."""
        net = weights_model(a=torch.ones(8, 1))
        args = {"mask_gradients": True, "mask_on_forward_only": True, "use_double_copies": True}
        run = self.scheduler(net, args=args)
        run.on_epoch_begin(0)
        run.on_minibatch_begin(0, 0, 1)
        net.a.weight.sum().backward()
        mask = run.masks["a.weight"]
        assert torch.allclose(net.a.weight.grad, mask * (8 / mask.sum()))

    def test_a_mask_that_is_kept_at_the_end_has_no_scale(self):
        net = weights_model(a=torch.ones(8, 1))
        run = self.scheduler(net, epochs=[0], args={"keep_mask": True})
        run.on_epoch_begin(0)
        run.on_epoch_end(0)
        run.on_epoch_begin(1)
        assert self.seen_by_the_forward_pass(net, run, 1).unique().tolist() == [0, 1]

    @settings(deadline=None, max_examples=60)
    @given(st.integers(1, 20), st.floats(0.01, 1), st.integers(0, 2**40))
    def test_one_row_stays_at_least_and_the_scale_makes_up_for_the_others(
        self, number: int, probability: float, seed: int
    ):
        net = weights_model(a=torch.ones(number, 2))
        run = self.scheduler(net, desired_sparsity=probability, seed=seed)
        run.on_epoch_begin(0)
        assert len(groups_gone(run.masks["a.weight"])) < number
        assert float(self.seen_by_the_forward_pass(net, run).sum()) == pytest.approx(2 * number)

    @settings(deadline=None, max_examples=30)
    @given(st.integers(1, 20), st.lists(st.floats(0.01, 1), min_size=2, max_size=4).map(sorted), st.integers(0, 2**40))
    def test_the_same_coins_drop_more_rows_at_a_higher_probability(
        self, number: int, probabilities: list[float], seed: int
    ):
        drops = [
            set(self.dropped(weights_model(a=torch.ones(number, 1)), desired_sparsity=p, seed=seed)[0])
            for p in probabilities
        ]
        assert all(lower <= higher for lower, higher in pairwise(drops))

    # Every other key

    @pytest.mark.parametrize(
        ("keys", "dim", "sizes"),
        [
            ({"group_type": "Filters"}, 0, 1),
            ({"group_type": "3D"}, 0, 1),
            ({"group_type": "Channels"}, 1, 1),
            ({"group_type": "Rows"}, 1, 1),
            ({"group_type": "Blocks", "kwargs": {"block_shape": [4, 32, 1, 1]}}, 0, 4),
            ({"granularity": {"dim": 1, "size": 8}}, 1, 8),
            ({"granularity": {"dim": 0, "heads": 4}}, 0, 8),
            ({"granularity": {"shape": [32, 2]}}, 1, 2),
        ],
    )
    def test_which_groups(self, keys: dict[str, Any], dim: int, sizes: int):
        (indices,) = self.dropped(weights_model(a=torch.ones(32, 32, 1, 1)), dim=dim, **keys)
        assert 0 < len(indices) < 32
        assert len({index // sizes for index in indices}) * sizes == len(indices)

    def test_the_agp_class_raises_the_probability_along_a_curve(self):
        net = weights_model(a=torch.ones(4000, 1))
        for curve, expected in (("cubic", [0, 0.4625, 0.7, 0.7875, 0.8]), ([0, 1, 1], [0, 0.4, 0.8, 0.8, 0.8])):
            seen = self.dropped(net, 5, initial_sparsity=0, final_sparsity=0.8, curve=curve)
            assert [len(rows) / 4000 for rows in seen] == pytest.approx(expected, abs=0.03)

    # What is refused

    @pytest.mark.parametrize(
        ("keys", "place", "message"),
        [
            ({"noise": 0.5}, "noise", "has no argument 'noise'"),
            ({"group_size": 2}, "group_size", "has no argument 'group_size'"),
            ({"rounding_fn": "ceil"}, "rounding_fn", "has no argument 'rounding_fn'"),
            ({"group_type": "Filters"}, "weights", "'a.weight' has shape [4, 2] and no groups 'Filters'"),
            ({"desired_sparsity": 40}, "desired_sparsity", "must be less than or equal to 1, got 40"),
            ({"desired_sparsity": float("nan")}, "desired_sparsity", "must be"),
            ({"initial_sparsity": 0.5, "final_sparsity": 0.4}, "final_sparsity", "must be above initial_sparsity 0.5"),
        ],
    )
    def test_what_makes_no_sense_is_refused_at_load(self, keys: dict[str, Any], place: str, message: str):
        ((where, said),) = self.problems(weights_model(a=torch.ones(4, 2)), **keys)
        assert (where, message in said) == (place, True), said


def test_the_cards_first_schedule_drops_a_quarter_and_loses_nothing():
    torch.manual_seed(0)
    net, drops = ConvNet(), []

    def look(layer: nn.Conv2d, *_: Any) -> None:
        kept = layer.weight.flatten(1).any(1)
        drops.append(1 - float(kept.float().mean()))

    for layer in (net.conv1, net.conv2):
        layer.register_forward_hook(look)
    for _ in epochs_under_card(Path(__file__).parents[1] / "README.md", net, None, 10, lr=0.05, minibatches=2):
        assert all(weight.all() for weight in (net.conv1.weight, net.conv2.weight))
    assert len(drops) == 10 * 2 * 2
    assert sum(drops) / len(drops) == pytest.approx(0.25, abs=0.08)
    assert len(set(drops)) > 2
