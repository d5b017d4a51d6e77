"""Each argument of a policy changes the outcome, on four weights; and what contradicts itself is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import SILENT, without_listeners
from structlog.testing import capture_logs
from torch import Tensor, nn

from prunekit import CompressionScheduler, ScheduleError

WEIGHTS = [4.0, 1.0, 3.0, 2.0]
FORWARD_ONLY = {"mask_on_forward_only": True}
UNMASKED = {"mask_on_forward_only": True, "use_double_copies": True}
HALF = {"class": "SparsityLevelParameterPruner", "levels": {"weight": 0.5}}


class Four(nn.Module):
    """One parameter, `weight`, of four numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(WEIGHTS))


def schedule(args: Any, component: Any = HALF, kind: str = "pruner", epochs: Any = (0,)) -> dict[str, Any]:
    policy = {kind: {"instance_name": "p", "args": args}, "epochs": list(epochs)}
    return {"version": 1, f"{kind}s": {"p": component}, "policies": [policy]}


def story(data: dict[str, Any], *steps: Any, minibatches: int = 2) -> list[list[list[float]]]:
    """For each mini-batch of two epochs the weights in the forward pass, and after a step that adds `steps` to them."""
    net = Four()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    scheduler = CompressionScheduler.from_dict(data, net, optimizer, trace=SILENT, plugins=without_listeners())
    told = []
    for epoch in scheduler.epochs(2):
        for _ in scheduler.minibatches([None] * minibatches):
            forward = net.weight.tolist()
            optimizer.zero_grad()
            scheduler.total_loss(-(torch.tensor(steps[epoch]) * net.weight).sum()).backward()
            optimizer.step()
            told.append([forward, net.weight.tolist()])
    return told


TEN = ([10.0] * 4, [10.0] * 4)
PLAIN = [
    [[4, 0, 3, 0], [14, 0, 13, 0]],
    [[14, 0, 13, 0], [24, 0, 23, 0]],
    [[24, 0, 23, 0], [34, 0, 33, 0]],  # the window is over, the mask holds
    [[34, 0, 33, 0], [44, 0, 43, 0]],
]


# One argument at a time


def test_without_arguments_what_is_pruned_is_zero_before_and_after_each_step() -> None:
    assert story(schedule({}), *TEN) == PLAIN


def test_mask_on_forward_only_lets_the_step_move_what_is_pruned() -> None:
    assert story(schedule(FORWARD_ONLY), *TEN) == [
        [[4, 0, 3, 0], [14, 10, 13, 10]],
        [[14, 0, 13, 0], [24, 10, 23, 10]],
        [[24, 10, 23, 10], [34, 20, 33, 20]],  # the policy is not active any more
        [[34, 20, 33, 20], [44, 30, 43, 30]],
    ]


def test_use_double_copies_lets_the_step_start_from_the_unmasked_weights() -> None:
    assert story(schedule(UNMASKED), *TEN)[:3] == [
        [[4, 0, 3, 0], [14, 11, 13, 12]],
        [[14, 0, 13, 0], [24, 21, 23, 22]],
        [[24, 21, 23, 22], [34, 31, 33, 32]],
    ]


def test_use_double_copies_where_masks_are_enforced_changes_nothing() -> None:
    assert story(schedule({"use_double_copies": True}), *TEN) == PLAIN


def test_mask_gradients_keeps_the_step_away_from_what_is_pruned_while_the_policy_is_active() -> None:
    assert story(schedule({**FORWARD_ONLY, "mask_gradients": True}), *TEN) == [
        [[4, 0, 3, 0], [14, 0, 13, 0]],
        [[14, 0, 13, 0], [24, 0, 23, 0]],
        [[24, 0, 23, 0], [34, 10, 33, 10]],
        [[34, 10, 33, 10], [44, 20, 43, 20]],
    ]


def test_mask_gradients_with_double_copies_leaves_what_is_pruned_where_it_was() -> None:
    assert story(schedule({**UNMASKED, "mask_gradients": True}), *TEN)[:2] == [
        [[4, 0, 3, 0], [14, 1, 13, 2]],
        [[14, 0, 13, 0], [24, 1, 23, 2]],
    ]


def test_keep_mask_enforces_the_mask_from_the_last_active_epoch_on() -> None:
    assert story(schedule({**FORWARD_ONLY, "keep_mask": True}), *TEN) == [
        [[4, 0, 3, 0], [14, 10, 13, 10]],
        [[14, 0, 13, 0], [24, 10, 23, 10]],
        [[24, 0, 23, 0], [34, 0, 33, 0]],
        [[34, 0, 33, 0], [44, 0, 43, 0]],
    ]


def test_discard_masks_at_minibatch_end_prunes_for_one_minibatch() -> None:
    assert story(schedule({"discard_masks_at_minibatch_end": True}), *TEN)[:2] == [
        [[4, 0, 3, 0], [14, 0, 13, 0]],
        [[14, 0, 13, 0], [24, 10, 23, 10]],
    ]


def test_skip_first_minibatch_prunes_from_the_second_on() -> None:
    assert story(schedule({"skip_first_minibatch": True}), *TEN)[:2] == [
        [[4, 1, 3, 2], [14, 11, 13, 12]],
        [[14, 0, 13, 0], [24, 0, 23, 0]],
    ]


@pytest.mark.parametrize(
    ("every", "forward"),
    [
        (0, [[4, 0, 3, 0], [2, 0, 3, 0], [0, 0, 3, 0], [-2, 0, 3, 0]]),
        (1, [[4, 0, 3, 0], [0, 5, 3, 0], [0, 9, 3, 0], [0, 13, 3, 0]]),
        (2, [[4, 0, 3, 0], [2, 0, 3, 0], [0, 9, 3, 0], [0, 13, 3, 0]]),
        (3, [[4, 0, 3, 0], [2, 0, 3, 0], [0, 0, 3, 0], [0, 13, 3, 0]]),
    ],
)
def test_mini_batch_pruning_frequency_chooses_anew_within_the_epoch(every: int, forward: Any) -> None:
    # Each step takes 2 from the first weight and gives 4 to the second: 4 1 3 2, 2 5 3 2, 0 9 3 2, -2 13 3 2.
    args = {**UNMASKED, "mini_batch_pruning_frequency": every}
    told = story(schedule(args), [-2.0, 4.0, 0.0, 0.0], [0.0] * 4, minibatches=4)
    assert [before for before, _ in told[:4]] == forward


def test_levels_replace_the_components_own() -> None:
    assert story(schedule({"levels": {"weight": 0.25}}), *TEN)[0] == [[4, 0, 3, 2], [14, 0, 13, 12]]


@pytest.mark.parametrize(("fold", "kept"), [(False, [0, 2]), (True, [1, 0])])
def test_fold_batchnorm_ranks_what_the_batch_normalization_makes_of_the_weights(fold: bool, kept: list[int]) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1))
        net[1].weight.copy_(torch.tensor([4.0, 1.0]))  # times these: 4 and 2
    ranked = {"class": "L1RankedStructureParameterPruner", "group_type": "Filters", "desired_sparsity": 0.5}
    data = schedule({"fold_batchnorm": fold}, {**ranked, "weights": ["0.weight"]})
    CompressionScheduler.from_dict(data, net, trace=SILENT).on_epoch_begin(0)
    assert net[0].weight.flatten().tolist() == kept


@pytest.mark.parametrize(
    ("keep", "later"), [(False, [[2, 0, 0, 0], [7, 5, 5, 5]]), (True, [[2, 0, 0, 0], [7, 0, 0, 0]])]
)
def test_keep_mask_of_a_regularizer_keeps_what_its_last_minibatch_zeroed(keep: bool, later: Any) -> None:
    # The penalty takes 1 from each weight, and what is then at most 1 is zeroed when the mini-batch ends.
    l1 = {"class": "L1Regularizer", "reg_regims": {"weight": 1.0}, "threshold_criteria": "Max"}
    told = story(schedule({"keep_mask": keep}, l1, "regularizer"), [0.0] * 4, [5.0] * 4)
    assert told[:2] == [[[4, 1, 3, 2], [3, 0, 2, 1]], [[3, 0, 2, 0], [2, 0, 1, 0]]]
    assert told[2] == later


# What the arguments do together


def test_all_arguments_of_dropfilter_together() -> None:
    args = {**UNMASKED, "mask_gradients": True, "discard_masks_at_minibatch_end": True}
    args |= {"mini_batch_pruning_frequency": 2}
    told = story(schedule(args), [10.0, 10, 10, 10], [0.0] * 4, minibatches=3)
    assert told[:3] == [
        [[4, 0, 3, 0], [14, 1, 13, 2]],  # masked, and its gradient too
        [[14, 1, 13, 2], [24, 11, 23, 12]],  # no mask
        [[24, 0, 23, 0], [34, 11, 33, 12]],  # step 2: a new one
    ]


def test_skip_first_minibatch_and_a_frequency_begin_with_the_second_minibatch() -> None:
    args = {**UNMASKED, "skip_first_minibatch": True, "mini_batch_pruning_frequency": 2}
    told = story(schedule(args), [-2.0, 4.0, 0.0, 0.0], [0.0] * 4, minibatches=3)
    assert [before for before, _ in told[:3]] == [[4, 1, 3, 2], [0, 5, 3, 0], [0, 9, 3, 0]]


# What is refused


@pytest.mark.parametrize(
    ("args", "key", "message"),
    [
        (
            {"mask_gradients": True},
            "mask_gradients",
            "needs mask_on_forward_only: true, or weights are masked anyway",
        ),
        (
            {"mask_gradients": True, "use_double_copies": True},
            "mask_gradients",
            "needs mask_on_forward_only: true, or weights are masked anyway",
        ),
        (
            {"keep_mask": True, "discard_masks_at_minibatch_end": True},
            "keep_mask",
            "discard_masks_at_minibatch_end: true leaves no mask to keep",
        ),
        (
            {"mini_batch_pruning_frequency": -1},
            "mini_batch_pruning_frequency",
            "must be greater than or equal to 0, got -1",
        ),
        ({"keep_mask": 1}, "keep_mask", "must be a valid boolean, got 1"),
        (
            {"fold_batchnorm": True},
            "fold_batchnorm",
            "no batch normalization follows any of the convolutions that this policy prunes",
        ),
    ],
)
def test_what_contradicts_itself_is_refused_at_load(args: dict[str, Any], key: str, message: str) -> None:
    class Traceable(Four):
        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    with pytest.raises(ScheduleError) as error:
        CompressionScheduler.from_dict(schedule(args), Traceable(), trace=SILENT)
    (problem,) = error.value.problems
    assert (problem.path, problem.message) == (f"policies[0].pruner.args.{key}", message)


def test_skipping_the_beginning_of_the_only_active_epoch_is_refused() -> None:
    only = schedule({"skip_first_minibatch": True})
    only["policies"][0] = {"pruner": only["policies"][0]["pruner"], "epochs": [2]}
    with pytest.raises(ScheduleError) as error:
        CompressionScheduler.from_dict(only, Four(), trace=SILENT)
    (problem,) = error.value.problems
    assert problem.path == "policies[0].pruner.args.skip_first_minibatch"
    assert problem.message == "leaves nothing to do: epoch 2 is the only active one, and its beginning is skipped"


def test_keep_mask_of_a_regularizer_without_a_threshold_has_no_effect_and_the_trace_says_so() -> None:
    # A published schedule has it so (gss_channels-removal_training), and must run.
    l1 = {"class": "L1Regularizer", "reg_regims": {"weight": 1.0}}
    with capture_logs() as lines:
        CompressionScheduler.from_dict(schedule({"keep_mask": True}, l1, "regularizer"), Four())
    said = [line["problem"] for line in lines if line["log_level"] == "warning"]
    assert said == [
        "<dict>: policies[0].regularizer.args.keep_mask: "
        "has no effect: L1Regularizer drops no weights, so that no mask is made"
    ]


OPEN = [[[24, 10, 23, 10], [34, 20, 33, 20]], [[34, 20, 33, 20], [44, 30, 43, 30]]]  # nothing holds any more


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"use_double_copies": True}, PLAIN),
        ({"keep_mask": True}, PLAIN),
        (
            {**FORWARD_ONLY, "keep_mask": True},
            [[[4, 0, 3, 0], [14, 10, 13, 10]], [[14, 0, 13, 0], [24, 10, 23, 10]], *PLAIN[2:]],
        ),
        (
            {**UNMASKED, "keep_mask": True, "mini_batch_pruning_frequency": 1},
            [[[4, 0, 3, 0], [14, 11, 13, 12]], [[14, 0, 13, 0], [24, 21, 23, 22]], *PLAIN[2:]],
        ),
        (
            {**FORWARD_ONLY, "mask_gradients": True, "discard_masks_at_minibatch_end": True},
            [[[4, 0, 3, 0], [14, 0, 13, 0]], [[14, 0, 13, 0], [24, 10, 23, 10]], *OPEN],
        ),
        (
            {**FORWARD_ONLY, "skip_first_minibatch": True, "discard_masks_at_minibatch_end": True},
            [[[4, 1, 3, 2], [14, 11, 13, 12]], [[14, 0, 13, 0], [24, 10, 23, 10]], *OPEN],
        ),
    ],
)
def test_what_published_schedules_combine_does_what_each_argument_says(args: dict[str, Any], expected: Any) -> None:
    assert story(schedule(args), *TEN) == expected
