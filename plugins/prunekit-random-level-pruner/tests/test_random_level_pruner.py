"""Random levels: how many groups go is drawn, which ones is ranked; and where the card's schedule stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_random_level_pruner import RandomLevelStructureParameterPruner
from structlog.testing import capture_logs
from torch import nn

from prunekit import Progress, Window
from prunekit.components import Context
from prunekit.testing import (
    ConvNet,
    RankedOrderTests,
    RankedStructureTests,
    check_component,
    epochs_under_card,
    groups_gone,
    weights_model,
)

HUNDRED = torch.arange(1.0, 101).reshape(100, 1)
DRAWN = {"sparsity_range": [0.2, 0.8]}


class TestRandomLevels(RankedOrderTests, RankedStructureTests):
    """A range of one number draws that, so what holds for an exact sparsity holds here too."""

    pruner = RandomLevelStructureParameterPruner

    def share(self, sparsity: float) -> dict[str, Any]:
        return {"sparsity_range": [sparsity, sparsity]}

    def counts(self, epochs: int = 5, rows: int = 100, **keys: Any) -> list[int]:
        """How many of a hundred rows each epoch masks."""
        net = weights_model(a=torch.arange(1.0, rows + 1).reshape(-1, 1))
        run = self.scheduler(net, range(epochs), **{**DRAWN, **keys})
        return [len(self.begin(run, epoch).get("a", [])) for epoch in range(epochs)]

    def test_it_keeps_the_laws_with_a_range(self):
        check_component(self.pruner, **self.lawful, sparsity_range=[0.25, 0.75])

    # The draw

    def test_the_sparsity_is_drawn_evenly_between_the_two_for_each_pruning(self):
        """By the definition s ~ U(low, high): mean 0.5, standard deviation (high - low) / sqrt(12)."""
        seen = torch.tensor(self.counts(300)) / 100
        assert 0.2 <= seen.min() < 0.22
        assert 0.78 < seen.max() <= 0.8
        assert (float(seen.mean()), float(seen.std())) == pytest.approx((0.5, 0.6 / 12**0.5), abs=0.03)

    def test_the_groups_with_the_smallest_mean_magnitude_go(self):
        net: Any = weights_model(a=[[3.0, 0.0], [2.0, -2.0], [-5.0, 5.0], [1.0, 0.5]])  # means 1.5, 2, 5 and 0.75
        self.begin(self.scheduler(net, sparsity_range=[0.5, 0.7]))
        assert net.a.weight.tolist() == [[0, 0], [2, -2], [-5, 5], [0, 0]]

    def test_every_parameter_has_a_draw_of_its_own(self):
        gone = self.begin(self.scheduler(weights_model(a=HUNDRED, b=HUNDRED), weights="*", **DRAWN))
        assert len(gone["a"]) != len(gone["b"])

    def test_followers_share_the_draw_of_their_leader_and_its_groups(self):
        keys = {"weights": ["b.weight", "a.weight"], "group_dependency": "Leader"}
        gone = self.begin(self.scheduler(weights_model(a=HUNDRED, b=HUNDRED.flip(0)), **keys, **DRAWN))
        assert (gone["a"] == gone["b"], 99 in gone["a"]) == (True, True)

    def test_within_an_epoch_every_pruning_draws(self):
        run = self.scheduler(weights_model(a=HUNDRED), args={"mini_batch_pruning_frequency": 1}, **DRAWN)
        run.on_epoch_begin(0)
        seen = []
        for minibatch in range(4):
            run.on_minibatch_begin(0, minibatch, 4)
            seen.append(len(groups_gone(run.masks["a.weight"])))
            run.on_minibatch_end(0, minibatch, 4)
        assert len(set(seen)) == 4

    def test_another_seed_draws_others_and_the_same_the_same_whatever_the_application_draws(self):
        torch.manual_seed(1)
        first = self.counts(seed=0)
        torch.manual_seed(2)
        assert self.counts(seed=0) == first
        assert self.counts(seed=1) != first

    @pytest.mark.parametrize(("low", "expected"), [(0, 0), (0.5, 50), (1, 100)])
    def test_a_range_of_one_number_draws_that(self, low: float, expected: int):
        assert self.counts(3, sparsity_range=[low, low]) == [expected] * 3

    def test_group_size_and_rounding_say_how_many(self):
        plain = self.counts()
        assert self.counts(group_size=8) == [count // 8 * 8 for count in plain]
        assert self.counts(rounding_fn="ceil") == [count + 1 for count in plain]

    def test_noise_changes_which_groups_go_and_not_how_many(self):
        plain, noisy = (self.pruned(weights_model(a=HUNDRED), noise=noise, **DRAWN) for noise in (0, 1))
        assert plain == list(range(len(plain)))
        assert (len(noisy), noisy != plain) == (len(plain), True)

    def test_the_draw_of_the_sparsity_is_none_of_the_noises(self):
        """Else the first groups would be disturbed just where few groups go."""
        pruner = RandomLevelStructureParameterPruner(weights="*", granularity={"dim": 0}, sparsity_range=(0, 1))
        now = Context(nn.Module(), {}, Progress(0), Window(0, 1), {}, {})
        for seed in range(5):
            pruner.seed = seed
            noises = torch.rand(100, generator=pruner.generator(now, "a.weight"))
            assert float((noises - pruner.sparsity_of("a.weight", now)).abs().min()) > 1e-6

    @settings(deadline=None, max_examples=60)
    @given(
        st.integers(1, 30),
        st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
        st.integers(0, 2**40),
    )
    def test_the_number_stays_within_the_range(self, number: int, ends: list[float], seed: int):
        low, high = ends
        for count in self.counts(3, number, sparsity_range=[low, high], seed=seed):
            assert int(low * number) <= count <= int(high * number)

    # What follows

    def test_after_a_lower_draw_groups_leave_the_mask(self):
        net: Any = weights_model(a=HUNDRED)
        run, seen = self.scheduler(net, **DRAWN), []
        for epoch in range(5):
            seen.append(len(self.begin(run, epoch)["a"]))
            assert int((net.a.weight == 0).sum()) == max(seen), "nothing has brought them back"
        assert sorted(seen) != seen

    def test_with_copies_no_weight_is_lost(self):
        net: Any = weights_model(a=HUNDRED)
        args = {"mask_on_forward_only": True, "use_double_copies": True, "discard_masks_at_minibatch_end": True}
        run = self.scheduler(net, args=args, **DRAWN)
        for epoch in range(2):
            run.on_epoch_begin(epoch)
            run.on_minibatch_begin(epoch, 0, 1)
            assert 20 <= int((net.a.weight == 0).sum()) <= 80
            run.on_minibatch_end(epoch, 0, 1)
            assert torch.equal(net.a.weight, HUNDRED)

    def test_a_draw_of_less_than_one_group_is_in_the_trace(self):
        with capture_logs() as lines:
            self.begin(self.scheduler(self.model(a=[1, 2]), trace=None, sparsity_range=[0.1, 0.4]))
        assert [line["parameters"] for line in lines if line["event"] == "nothing pruned"] == [["a.weight"]]

    # What is refused

    @pytest.mark.parametrize(
        ("sparsity_range", "place", "message"),
        [
            ([0.8, 0.2], "", "must ascend, got [0.8, 0.2]"),
            ([0.2, 1.2], "[1]", "must be less than or equal to 1, got 1.2"),
            ([-1, 1], "[0]", "must be greater than or equal to 0, got -1"),
            ([0.2], "", "must have more items, got [0.2]"),
            ([0, 0.5, 1], "", "must have at most 2 items"),
            (0.5, "", "got 0.5"),
        ],
    )
    def test_a_range_that_is_none_is_refused(self, sparsity_range: Any, place: str, message: str):
        ((where, said),) = self.problems(self.model(a=[1, 2]), sparsity_range=sparsity_range)
        assert (where, message in said) == (f"sparsity_range{place}", True), said

    def test_one_sparsity_is_refused(self):
        ((place, message),) = self.problems(self.model(a=[1, 2]), desired_sparsity=0.5)
        assert (place, "has no argument 'desired_sparsity'" in message) == ("desired_sparsity", True)


def test_the_cards_first_schedule_stays_where_the_card_says():
    torch.manual_seed(0)
    seen = []
    for run in epochs_under_card(Path(__file__).parents[1] / "README.md", ConvNet(), None, 10, lr=0.05, minibatches=2):
        seen.append([len(groups_gone(run.masks[name])) for name in ("conv1.weight", "conv2.weight")])
    assert all(2 <= count <= 6 for pair in seen for count in pair)
    assert len(set(map(tuple, seen))) > 3
    assert any(one != other for one, other in seen)
