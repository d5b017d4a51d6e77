"""Gradient ranking: the score, over which mini-batches, which filters go, by every key; and what is refused."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_gradient_ranked_pruner import GradientRankedFilterPruner, GradientRankedFilterPruner_AGP
from structlog.testing import capture_logs
from torch import Tensor, nn

from prunekit import CompressionScheduler
from prunekit.testing import ConvNet, RankedOrderTests, epochs_under_card, groups_gone, weights_model

NUMBERS = st.integers(-3, 3).map(float)
WEIGHTS, GRADIENT = [[1.0, 1.0], [3.0, 4.0], [-2.0, 0.5], [9.0, 9.0]], [[0.5, 0.5], [4.0, -3.0], [1.0, 1.0], [0.1, 0.0]]
"""Σ w · ∂L/∂w of the rows: 1, 12 - 12 = 0, -1.5 and 0.9."""


def filters(values: list[float], *shape: int) -> Tensor:
    return torch.tensor(values).reshape(-1, *[1] * (len(shape) - 1)).expand(shape).clone()


class TestGradientRanking(RankedOrderTests):
    pruner = GradientRankedFilterPruner
    gradual = GradientRankedFilterPruner_AGP
    lawful_gradually = RankedOrderTests.lawful

    def prepare(self, scheduler: CompressionScheduler) -> None:
        for weight in scheduler.model.parameters():
            weight.grad = torch.ones_like(weight)

    def batch(self, run: CompressionScheduler, gradient: Any, epoch: int = 0, name: str = "a.weight") -> None:
        """A mini-batch with this gradient; weights do not move."""
        parameter = run.model.get_parameter(name)
        run.on_minibatch_begin(epoch, 0, 1)
        parameter.grad = None if gradient is None else torch.as_tensor(gradient, dtype=parameter.dtype)
        run.before_parameter_optimization(epoch, 0, 1)
        run.on_minibatch_end(epoch, 0, 1)

    def gone(self, run: CompressionScheduler, name: str = "a.weight", dim: int = 0) -> list[int]:
        """What is pruned of a parameter."""
        return groups_gone(run.masks[name], dim) if name in run.masks else []

    def pruned_with(self, weights: Any, gradient: Any, dim: int = 0, **keys: Any) -> list[int]:
        """What goes in epoch 0 with this gradient in the parameter."""
        net: Any = weights_model(a=weights)
        run = self.scheduler(net, **keys)
        net.a.weight.grad = torch.as_tensor(gradient, dtype=net.a.weight.dtype)
        run.on_epoch_begin(0)
        return self.gone(run, dim=dim)

    # The score, by its definition

    def test_the_filters_with_the_smallest_magnitude_of_the_sum_go(self) -> None:
        # By Σ |w · ∂L/∂w| row 1 would stay (24), by the signed sum row 2 would be the first to go, by |w| row 0.
        assert self.pruned_with(WEIGHTS, GRADIENT) == [1, 3]

    def test_the_score_is_the_first_order_change_of_the_loss_where_the_filter_becomes_zero(self) -> None:
        torch.manual_seed(0)
        layer = nn.Linear(3, 4, bias=False)
        x = torch.randn(5, 3)
        loss = lambda: (
            layer(x) * torch.tensor([1.0, -2.0, 0.5, 3.0])
        ).sum()  # linear in the weights: first order is all
        run = self.scheduler(nn.Sequential(layer), weights="0.weight", desired_sparsity=0.5)
        loss().backward()
        changes = []
        for row in range(4):
            with torch.no_grad():
                kept, before = layer.weight[row].clone(), loss()
                layer.weight[row] = 0
                changes.append(float((loss() - before).abs()))
                layer.weight[row] = kept
        run.on_epoch_begin(0)
        assert self.gone(run, "0.weight") == sorted(sorted(range(4), key=changes.__getitem__)[:2])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_products_are_wide_in_every_type(self, dtype: torch.dtype) -> None:
        # In float16 300 · 300 is infinite, in bfloat16 256 + 1 is 256.
        net = weights_model(a=torch.tensor([[300.0, 1.0], [256.0, 1.0], [256.0, 0.0]], dtype=dtype))
        run = self.scheduler(net, desired_sparsity=0.67)
        net.a.weight.grad = torch.tensor([[300.0, 0.0], [1.0, 1.0], [1.0, 1.0]], dtype=dtype)
        run.on_epoch_begin(0)
        assert self.gone(run) == [1, 2]
        net = weights_model(a=torch.tensor([[256.0, 1.0], [256.0, 0.0]], dtype=dtype))
        run = self.scheduler(net)
        net.a.weight.grad = torch.ones(2, 2, dtype=dtype)
        run.on_epoch_begin(0)
        assert self.gone(run) == [1]

    @pytest.mark.parametrize("scale", [2.0**-20, 65536.0])
    def test_a_scale_of_the_loss_does_not_change_the_ranking(self, scale: float) -> None:
        assert self.pruned_with(WEIGHTS, torch.tensor(GRADIENT) * scale) == [1, 3]

    # Over which mini-batches

    def test_the_scores_of_mini_batches_are_averaged_not_the_gradients(self) -> None:
        run = self.scheduler(weights_model(a=[[1.0], [1.0]]), epochs=[1])
        run.on_epoch_begin(0)
        for gradient in ([[5.0], [1.0]], [[-5.0], [1.0]]):  # the mean gradient of row 0 is zero, its mean score 5
            self.batch(run, gradient)
        run.on_epoch_end(0)
        run.on_epoch_begin(1)
        assert self.gone(run) == [1]

    def test_it_looks_from_the_epoch_before_the_first_active_one_and_anew_after_each_pruning(self) -> None:
        run, seen = self.scheduler(weights_model(a=[[1.0], [1.0], [1.0]]), epochs=[2, 3], desired_sparsity=0.34), []
        for epoch, gradient in enumerate(([[0.0], [9.0], [9.0]], [[5.0], [1.0], [2.0]], [[5.0], [9.0], [2.0]], None)):
            run.on_epoch_begin(epoch)
            seen.append(self.gone(run))
            self.batch(run, gradient, epoch)
            run.on_epoch_end(epoch)
        # Epoch 0 does not count; in epoch 2 filter 1 is zero and scores zero whatever its gradient.
        assert seen == [[], [], [1], [1]]

    def test_mini_batches_whose_gradients_are_not_finite_do_not_count(self) -> None:
        run = self.scheduler(weights_model(a=[[1.0], [1.0]]), epochs=[1])
        run.on_epoch_begin(0)
        for gradient in ([[math.inf], [1.0]], [[math.nan], [1.0]], [[1.0], [2.0]]):
            self.batch(run, gradient)
        assert run.state_dict()["components"]["pruners.p"]["seen"]["a.weight"].tolist() == [1, 2, 1]
        run.on_epoch_begin(1)
        assert self.gone(run) == [0]

    def test_without_an_observation_the_gradient_in_the_parameter_is_taken(self) -> None:
        assert self.pruned_with([[1.0], [1.0]], [[2.0], [1.0]]) == [1]
        assert self.pruned_with([[1.0], [1.0]], [[2.0], [math.nan]]) == []

    def test_without_a_gradient_nothing_is_pruned_and_one_warning_says_so(self) -> None:
        with capture_logs() as lines:
            run = self.scheduler(
                weights_model(a=[[1.0], [1.0]], b=[[1.0], [1.0]]), trace=None, weights=["a.weight", "b.weight"]
            )
            run.on_epoch_begin(0)
            run.on_epoch_end(0)
            run.on_epoch_begin(1)
        assert dict(run.masks) == {}
        warnings = [(line["event"], line["epoch"]) for line in lines if line["log_level"] == "warning"]
        assert warnings == [("no gradient yet, nothing pruned", 0)]

    def test_a_tensor_without_a_gradient_does_not_keep_others_from_being_pruned(self) -> None:
        net = weights_model(a=[[1.0], [1.0]], b=[[1.0], [1.0]])
        run = self.scheduler(net, weights=["a.weight", "b.weight"])
        net.b.weight.grad = torch.tensor([[1.0], [2.0]])
        run.on_epoch_begin(0)
        assert list(run.masks) == ["b.weight"]

    def test_a_resumed_run_goes_on_with_what_was_observed(self) -> None:
        run = self.scheduler(weights_model(a=[[1.0], [1.0]]), epochs=[1])
        run.on_epoch_begin(0)
        self.batch(run, [[2.0], [1.0]])
        run.on_epoch_end(0)
        file = io.BytesIO()
        torch.save(run.state_dict(), file)
        file.seek(0)
        other = self.scheduler(weights_model(a=[[1.0], [1.0]]), epochs=[1])
        other.load_state_dict(torch.load(file, weights_only=True))
        other.on_epoch_begin(1)
        assert self.gone(other) == [1]

    # Keys

    @pytest.mark.parametrize("group_type", ["3D", "Filters"])
    def test_the_filters_of_a_convolution_are_ranked(self, group_type: str) -> None:
        weights = filters([3.0, 1.0, 2.0, 4.0], 4, 2, 3, 3)
        assert self.pruned_with(weights, torch.ones(4, 2, 3, 3), group_type=group_type, granularity=None) == [1, 2]

    def test_other_structures_are_ranked_by_granularity(self) -> None:
        weights = [[1.0, 5.0, 2.0, 6.0]]
        assert self.pruned_with(weights, [[1.0, 1.0, 1.0, 1.0]], granularity={"dim": 1}, dim=1) == [0, 2]
        assert self.pruned_with(weights, [[1.0, 1.0, 1.0, 1.0]], granularity={"shape": [1, 2]}, dim=1) == [0, 1]
        assert self.pruned_with(weights, [[1.0, -1.0, 1.0, -9.0]], granularity={"dim": 1, "size": 2}, dim=1) == [0, 1]

    @pytest.mark.parametrize(("curve", "counts"), [("cubic", [2, 7, 8]), ("linear", [2, 5, 8])])
    def test_agp_reaches_its_final_sparsity_along_the_curve(self, curve: str, counts: list[int]) -> None:
        net = weights_model(a=torch.arange(1.0, 17).reshape(16, 1))
        keys: dict[str, Any] = {"initial_sparsity": 0.125, "final_sparsity": 0.5, "curve": curve}
        run, seen = self.scheduler(net, epochs=[1, 2, 3], **keys), []
        for epoch in range(4):
            run.on_epoch_begin(epoch)
            seen.append(self.gone(run))
            self.batch(run, torch.ones(16, 1), epoch)
            run.on_epoch_end(epoch)
        assert seen == [[], *(list(range(count)) for count in counts)]

    @pytest.mark.parametrize(
        ("keys", "place", "message"),
        [
            ({"group_type": "Channels"}, "group_type", "'3D' or 'Filters', got 'Channels'"),
            ({"granularity": None}, "granularity", "say either group_type or granularity"),
            ({"granularity": {"dim": 3}}, "weights", "'a.weight' has shape [2, 1] and no dimension 3"),
        ],
    )
    def test_groups_that_are_not_meant_or_not_there_are_refused(self, keys: Any, place: str, message: str) -> None:
        ((where, said),) = self.problems(weights_model(a=[[1.0], [1.0]]), **keys)
        assert (where, message in said) == (place, True), said

    # For any weights

    @settings(deadline=None, max_examples=40)
    @given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12), st.floats(0, 0.99), st.data())
    def test_the_budget_is_kept_and_applying_it_again_changes_nothing(
        self, pairs: list[tuple[float, float]], sparsity: float, data: st.DataObject
    ) -> None:
        weights, gradient = (torch.tensor(values).reshape(-1, 1) for values in zip(*pairs, strict=True))
        net = weights_model(a=weights)
        run = self.scheduler(net, desired_sparsity=sparsity)
        net.a.weight.grad = gradient.clone()
        run.on_epoch_begin(0)
        changes = [abs(weight * slope) for weight, slope in pairs]
        count = int(sparsity * len(pairs))
        first = self.gone(run)
        assert first == sorted(sorted(range(len(pairs)), key=lambda index: (changes[index], index))[:count])
        run.on_epoch_begin(1)
        assert self.gone(run) == first
        order = data.draw(st.permutations(range(len(pairs))))
        moved = self.pruned_with(weights[order], gradient[order], desired_sparsity=sparsity)
        assert sorted(changes[order[index]] for index in moved) == sorted(changes[index] for index in first)


def test_the_first_schedule_of_the_card_prunes_what_the_card_says() -> None:
    torch.manual_seed(0)
    (*_, run) = epochs_under_card(Path(__file__).parents[1] / "README.md", ConvNet(), None, 12, minibatches=2)
    assert {name: run.sparsity(name) for name in run.masks} == {"conv1.weight": 0.5, "conv2.weight": 0.5}
