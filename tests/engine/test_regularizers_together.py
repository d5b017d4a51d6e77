"""Several regularizers on one parameter, thresholds beside a pruner's mask, and the schedules of DropFilter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import SILENT
from structlog.testing import capture_logs
from torch import Tensor, nn

from prunekit import CompressionScheduler, Trace

# Channels [3, 4] and [1, 0]: norms 5 and 1, and their variance is 8. Each filter is one of these rows.
WEIGHTS = [[[[3.0, 4.0]], [[1.0, 0.0]]]]
L1 = {"class": "L1Regularizer", "reg_regims": {"weight": 0.5}}
LASSO = {"class": "GroupLassoRegularizer", "reg_regims": {"weight": [2.0, "Channels"]}}
VARIANCE = {"class": "GroupVarianceRegularizer", "reg_regims": {"weight": [4.0, "Channels"]}}
PENALTIES = {"l1": 0.5 * 8, "lasso": 2.0 * 6, "variance": 4 / 8}


def convolution() -> nn.Conv2d:
    """A parameter `weight` [1, 2, 1, 2] with the numbers above."""
    net = nn.Conv2d(2, 1, (1, 2), bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor(WEIGHTS))
    return net


def window(name: str, start: int = 0, end: int = 2, **args: Any) -> dict[str, Any]:
    policy = {"regularizer": {"instance_name": name, **({"args": args} if args else {})}}
    return {**policy, "starting_epoch": start, "ending_epoch": end}


def attach(
    net: nn.Module, regularizers: dict[str, Any], policies: list[Any], lr: float = 0.0, trace: Any = SILENT, **more: Any
) -> tuple[CompressionScheduler, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    data = {"version": 1, "regularizers": regularizers, "policies": policies, **more}
    return CompressionScheduler.from_dict(data, net, optimizer, trace=trace), optimizer


def gradient(*names: str) -> Tensor:
    """Of these penalties on one parameter."""
    net, every = convolution(), {"l1": L1, "lasso": LASSO, "variance": VARIANCE}
    scheduler, _ = attach(net, {name: every[name] for name in names}, [window(name) for name in names])
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    total = scheduler.before_backward_pass(0, 0, 1, torch.zeros(()))
    assert total.item() == pytest.approx(sum(PENALTIES[name] for name in names))
    total.backward()
    assert net.weight.grad is not None
    return net.weight.grad


# Penalties add up


@pytest.mark.parametrize(
    "names", [("l1", "lasso"), ("lasso", "variance"), ("l1", "variance"), ("l1", "lasso", "variance")]
)
def test_penalties_on_one_parameter_add_up_and_so_do_their_gradients(names: tuple[str, ...]) -> None:
    each = torch.stack([gradient(name) for name in names])
    torch.testing.assert_close(gradient(*names), each.sum(0))
    torch.testing.assert_close(gradient(*reversed(names)), each.sum(0))


def test_the_gradient_of_l1_and_group_lasso_by_hand() -> None:
    expected = torch.tensor([[[[0.5 + 2 * 0.6, 0.5 + 2 * 0.8]], [[0.5 + 2, 0.0]]]])
    torch.testing.assert_close(gradient("l1", "lasso"), expected)


def test_one_class_twice_on_one_parameter_adds_both_strengths() -> None:
    net = convolution()
    regularizers = {"weak": L1, "strong": {**L1, "reg_regims": {"weight": 1.5}}}
    scheduler, _ = attach(net, regularizers, [window("weak"), window("strong")])
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    assert scheduler.before_backward_pass(0, 0, 1, torch.zeros(())).item() == 2 * 8


def test_each_penalty_has_its_own_window_and_its_own_name_in_the_trace() -> None:
    net = convolution()
    regularizers = {"l1": L1, "lasso": LASSO, "variance": VARIANCE}
    policies = [window("l1", 0, 3), window("lasso", 1, 2), window("variance", 2, 3)]
    with capture_logs() as lines:
        scheduler, _ = attach(net, regularizers, policies, trace=Trace())
        for _ in scheduler.epochs(4):
            for _ in scheduler.minibatches([None] * 2):
                scheduler.total_loss(torch.zeros(()))
    terms = {line["epoch"]: line["means"] for line in lines if line["event"] == "loss terms"}
    l1 = {"l1": PENALTIES["l1"]}
    assert terms == {
        0: pytest.approx(l1),
        1: pytest.approx({**l1, "lasso": PENALTIES["lasso"]}),
        2: pytest.approx({**l1, "variance": PENALTIES["variance"]}),
    }


# Thresholds


def zeroed(
    *regularizers: tuple[dict[str, Any], dict[str, Any]], epochs: int = 1, **more: Any
) -> tuple[list[Any], CompressionScheduler]:
    """The weights after each epoch of one mini-batch, whose step adds 1 to each weight; window: the first epoch."""
    net = convolution()
    named = {f"r{index}": regularizer for index, (regularizer, _) in enumerate(regularizers)}
    policies = [window(f"r{index}", 0, 1, **args) for index, (_, args) in enumerate(regularizers)]
    scheduler, _ = attach(net, named, [*more.pop("first", []), *policies], **more)
    seen = []
    for epoch in range(epochs):
        scheduler.on_epoch_begin(epoch)
        scheduler.on_minibatch_begin(epoch, 0, 1)
        with torch.no_grad():
            net.weight += 1
        scheduler.on_minibatch_end(epoch, 0, 1)
        scheduler.on_epoch_end(epoch)
        seen.append(net.weight.tolist())
    return seen, scheduler


SMALL = {"class": "L1Regularizer", "reg_regims": {"weight": 1.0}, "threshold_criteria": "Max"}
CHANNELS = {**LASSO, "threshold_criteria": "Max"}  # threshold 2: the second channel, [1, 0] + 1, goes


def test_two_thresholds_on_one_parameter_zero_what_either_does() -> None:
    assert zeroed((SMALL, {}))[0] == [[[[[4, 5]], [[2, 0]]]]]
    assert zeroed((CHANNELS, {}))[0] == [[[[[4, 5]], [[0, 0]]]]]
    for order in ([(SMALL, {}), (CHANNELS, {})], [(CHANNELS, {}), (SMALL, {})]):
        (weights,), _ = zeroed(*order)
        assert weights == [[[[4, 5]], [[0, 0]]]]


def test_zeros_of_two_regularizers_that_are_kept_are_kept_together() -> None:
    keep = {"keep_mask": True}
    big = {**SMALL, "reg_regims": {"weight": 4.0}}
    for order in ([(big, keep), (CHANNELS, keep)], [(CHANNELS, keep), (big, keep)]):
        weights, scheduler = zeroed(*order, epochs=2)
        assert weights == [[[[[0, 5]], [[0, 0]]]], [[[[0, 6]], [[0, 0]]]]]
        assert scheduler.masks["weight"].tolist() == [[[[False, True]], [[False, False]]]]


def test_of_two_regularizers_only_what_is_kept_stays() -> None:
    big = {**SMALL, "reg_regims": {"weight": 4.0}}
    weights, _ = zeroed((big, {}), (CHANNELS, {"keep_mask": True}), epochs=2)
    assert weights == [[[[[0, 5]], [[0, 0]]]], [[[[1, 6]], [[0, 0]]]]]


# Beside a pruner

QUARTER = {"class": "SparsityLevelParameterPruner", "levels": {"weight": 0.25}}
PRUNED = {
    "pruners": {"p": QUARTER},
    "first": [{"pruner": {"instance_name": "p"}, "starting_epoch": 0, "ending_epoch": 1}],
}


def test_a_threshold_zeroes_once_and_the_pruners_mask_stays() -> None:
    # The pruner takes the 0. The threshold of 2 takes the 1, which has become 2, until the next step.
    weights, scheduler = zeroed(({**SMALL, "reg_regims": {"weight": 2.0}}, {}), epochs=2, **PRUNED)
    assert weights == [[[[[4, 5]], [[0, 0]]]], [[[[5, 6]], [[1, 0]]]]]
    assert scheduler.masks["weight"].tolist() == [[[[True, True]], [[True, False]]]]


def test_what_a_threshold_keeps_is_the_intersection_with_the_pruners_mask() -> None:
    keep = {"keep_mask": True}
    weights, scheduler = zeroed(({**SMALL, "reg_regims": {"weight": 2.0}}, keep), epochs=2, **PRUNED)
    assert weights == [[[[[4, 5]], [[0, 0]]]], [[[[5, 6]], [[0, 0]]]]]
    assert scheduler.masks["weight"].tolist() == [[[[True, True]], [[False, False]]]]


def test_kept_groups_and_a_pruners_later_masks_hold_together() -> None:
    first = [{"pruner": {"instance_name": "p"}, "starting_epoch": 0, "ending_epoch": 3}]
    weights, scheduler = zeroed((CHANNELS, {"keep_mask": True}), epochs=3, **{**PRUNED, "first": first})
    assert weights[-1] == [[[[6, 7]], [[0, 0]]]]
    assert scheduler.masks["weight"].tolist() == [[[[True, True]], [[False, False]]]]


def test_a_penalty_sees_the_masked_weights() -> None:
    net = convolution()
    policies = [*PRUNED["first"], window("l1")]
    half = {"class": "SparsityLevelParameterPruner", "levels": {"weight": 0.5}}
    scheduler, _ = attach(net, {"l1": L1}, policies, pruners={"p": half})
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    assert scheduler.before_backward_pass(0, 0, 1, torch.zeros(())).item() == 0.5 * 7


# DropFilter: a pruner that is a regularizer

PUBLISHED = {
    "training": (
        {"class": "BernoulliFilterPruner_AGP", "initial_sparsity": 0.25, "final_sparsity": 0.5},
        {"use_double_copies": True},
    ),
    "regularization": ({"class": "BernoulliFilterPruner", "desired_sparsity": 0.4}, {}),
    "random level": (
        {"class": "RandomLevelStructureParameterPruner", "sparsity_range": [0.25, 0.5]},
        {"use_double_copies": True},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_dropfilter_drops_other_filters_now_and_then_and_prunes_nothing(name: str) -> None:
    pruner, more = PUBLISHED[name]
    args = {"mini_batch_pruning_frequency": 4, "discard_masks_at_minibatch_end": True, **more}
    args |= {"mask_on_forward_only": True, "mask_gradients": True}
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16 * 4, 4))
    data = {
        "version": 1,
        "pruners": {"drop": {**pruner, "group_type": "Filters", "weights": ["0.weight", "2.weight"]}},
        "policies": [{"pruner": {"instance_name": "drop", "args": args}, "starting_epoch": 1, "ending_epoch": 4}],
    }
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    scheduler = CompressionScheduler.from_dict(data, net, optimizer, trace=SILENT)
    images, classes = torch.randn(8, 1, 6, 6), torch.randint(0, 4, (8,))
    dropped: dict[tuple[int, int], list[int]] = {}
    double = "use_double_copies" in args
    for epoch in scheduler.epochs(5):
        for minibatch in scheduler.minibatches(range(8)):
            before = net[2].weight.detach().clone()
            gone = (before == 0).flatten(1).all(1)
            dropped[epoch, minibatch] = gone.nonzero().flatten().tolist()
            optimizer.zero_grad()
            scheduler.total_loss(nn.functional.cross_entropy(net(images), classes)).backward()
            assert not net[2].weight.grad[gone].any(), "the gradient of a dropped filter is masked"
            optimizer.step()
            assert not double or not (net[2].weight == 0).flatten(1).all(1).any(), "dropped for one mini-batch"
    drawn = {place for place, filters in dropped.items() if filters}
    if double:
        assert drawn == {(epoch, minibatch) for epoch in (1, 2, 3) for minibatch in (0, 4)}
        assert len({tuple(dropped[place]) for place in drawn}) > 1, "not the same ones each time"
    assert dict(scheduler.masks) == {}
    assert scheduler.state_dict()["masks"] == {}
