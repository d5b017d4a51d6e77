"""N:M pruning: exactly N of each M along a dimension, ties, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_n_m_pruner import NMPruner
from torch import Tensor, nn

from prunekit import CompressionScheduler, Schedule, ScheduleError, Trace
from prunekit.testing import check_component, weights_model

README = Path(__file__).parents[1] / "README.md"
EIGHT = [[4.0, -1.0, 2.0, -3.0, 0.1, 0.2, -0.4, 0.3]]


def scheduler(net: nn.Module, epochs: Any = (0,), **keys: Any) -> CompressionScheduler:
    schedule = {
        "version": 1,
        "pruners": {"p": {"class": "NMPruner", "weights": "*", **keys}},
        "policies": [{"pruner": {"instance_name": "p"}, "epochs": list(epochs)}],
    }
    return CompressionScheduler.from_dict(schedule, net)


def kept(weights: Any, **keys: Any) -> Any:
    """The mask of one tensor, as numbers."""
    run = scheduler(weights_model(fc1=weights), **keys)
    run.on_epoch_begin(0)
    return run.masks["fc1.weight"].int().tolist()


# Which weights


def test_the_two_largest_of_each_four_stay():
    net = weights_model(fc1=EIGHT)
    scheduler(net).on_epoch_begin(0)
    torch.testing.assert_close(net.fc1.weight.data, torch.tensor([[4.0, 0, 0, -3.0, 0, 0, -0.4, 0.3]]))


@pytest.mark.parametrize(
    ("n", "m", "mask"),
    [
        (1, 4, [1, 0, 0, 0, 0, 0, 1, 0]),
        (3, 4, [1, 0, 1, 1, 0, 1, 1, 1]),
        (1, 2, [1, 0, 0, 1, 0, 1, 1, 0]),
        (2, 8, [1, 0, 0, 1, 0, 0, 0, 0]),
    ],
)
def test_n_and_m_say_how_many_of_how_many(n: int, m: int, mask: list[int]):
    assert kept(EIGHT, n=n, m=m) == [mask]


def test_the_dimension_is_that_of_the_inputs_unless_it_is_named():
    weights = [[1.0, 4.0], [2.0, 3.0]]
    assert kept(weights, n=1, m=2) == [[0, 1], [0, 1]]
    assert kept(weights, n=1, m=2, dim=0) == [[0, 1], [1, 0]]


def test_in_a_convolution_groups_are_channels_at_one_place_of_the_kernel():
    # Two filters of four channels, kernels of 1 × 2; channel c at place p of filter f is (f, c, p).
    weights = torch.tensor([[[[1.0, 9.0]], [[2.0, 8.0]], [[3.0, 7.0]], [[4.0, 6.0]]]]).repeat(2, 1, 1, 1)
    assert kept(weights)[0] == [[[0, 1]], [[0, 1]], [[1, 0]], [[1, 0]]]


def test_of_equal_weights_in_a_group_the_first_go():
    assert kept([[1.0, -1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0]]) == [[0, 0, 1, 1, 1, 0, 0, 1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_each_group_has_exactly_its_share_in_every_type(dtype: torch.dtype):
    # In bfloat16 256 … 511 are full of ties: it has 8 significant bits.
    weights = torch.arange(256, 512).reshape(16, 16).to(dtype)
    assert kept(weights) == [[0, 0, 1, 1] * 4] * 16


# Over time


def test_pruning_again_changes_nothing_as_long_as_pruned_weights_stay_zero():
    net = weights_model(fc1=EIGHT)
    run = scheduler(net, epochs=[0, 1])
    masks = []
    for epoch in range(2):
        run.on_epoch_begin(epoch)
        masks.append(run.masks["fc1.weight"].tolist())
    assert masks[0] == masks[1]


def test_a_weight_that_has_become_large_comes_back_where_pruned_weights_go_on_learning():
    net = weights_model(fc1=[[4.0, 1.0, 2.0, 3.0]])
    schedule = {
        "version": 1,
        "pruners": {"p": {"class": "NMPruner", "weights": "*"}},
        "policies": [
            {
                "pruner": {"instance_name": "p", "args": {"mask_on_forward_only": True, "use_double_copies": True}},
                "epochs": [0, 1],
            }
        ],
    }
    run = CompressionScheduler.from_dict(schedule, net)
    run.on_epoch_begin(0)
    assert run.masks["fc1.weight"].int().tolist() == [[1, 0, 0, 1]]
    with torch.no_grad():
        net.fc1.weight[0, 1] += 9
    run.on_epoch_begin(1)
    assert run.masks["fc1.weight"].int().tolist() == [[1, 1, 0, 0]]


# What is refused


@pytest.mark.parametrize(
    ("shape", "keys", "message"),
    [
        ((2, 6), {}, "'fc1.weight' has shape [2, 6]: its dimension 1 is not divided into groups of 4"),
        ((8,), {}, "'fc1.weight' has shape [8] and no dimension 1"),
        ((3, 8), {"dim": 0}, "'fc1.weight' has shape [3, 8]: its dimension 0 is not divided into groups of 4"),
        ((3, 8), {"dim": 2}, "'fc1.weight' has shape [3, 8] and no dimension 2"),
    ],
)
def test_a_tensor_that_can_not_be_divided_is_refused_at_load(shape: Any, keys: Any, message: str):
    with pytest.raises(ScheduleError) as error:
        scheduler(
            weights_model(fc1=torch.ones(shape), fc2=torch.ones(4, 8, 4)),
            **{"weights": ["fc2.weight", "fc1.*"], **keys},
        )
    (problem,) = error.value.problems
    assert (problem.path, problem.message) == ("pruners.p.weights[1]", message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n", 4, "must be below m 4, or nothing is pruned, got 4"),
        ("n", 0, "must be greater than or equal to 1, got 0"),
        ("m", 1, "must be below m 1, or nothing is pruned, got 2"),
        ("dim", -1, "must be greater than or equal to 0, got -1"),
        ("weights", "", "selects nothing: name at least one parameter, or '*'"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(key: str, value: Any, message: str):
    with pytest.raises(ScheduleError) as error:
        scheduler(weights_model(fc1=EIGHT), **{key: value})
    (problem,) = error.value.problems
    assert (problem.path, problem.message) == (f"pruners.p.{'n' if key == 'm' else key}", message)


# For any weights


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 99), st.integers(1, 3), st.permutations(range(5)))
def test_rows_in_another_order_keep_the_same_weights(seed: int, n: int, order: list[int]):
    weights = torch.randint(-3, 4, (5, 8), generator=torch.Generator().manual_seed(seed)).float()
    mask = torch.tensor(kept(weights.clone(), n=n))
    assert torch.tensor(kept(weights[order], n=n)).equal(mask[order])
    assert mask.reshape(-1, 4).sum(1).tolist() == [n] * 10


# The card, and the laws of every component


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, 8), nn.Linear(8, 4)
        self.conv2, self.conv3 = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 16, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(self.conv3(self.conv2(images)).flatten(1)[:, :12])))


def test_the_schedule_of_the_card_ends_where_the_card_says():
    yaml = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[0]
    net = Network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    run = CompressionScheduler(Schedule.from_text(yaml), net, optimizer, trace=Trace(level="error"))
    sparsity = []
    for _ in run.epochs(20):
        for images in run.minibatches([torch.randn(2, 8, 5, 5)]):
            optimizer.zero_grad()
            run.total_loss(net(images).square().mean()).backward()
            optimizer.step()
        sparsity.append({run.sparsity(name) for name in run.masks})
    assert sparsity == [set()] * 5 + [{0.5}] * 15
    assert sorted(run.masks) == ["conv2.weight", "conv3.weight", "fc1.weight", "fc2.weight"]


def test_it_keeps_the_laws():
    check_component(NMPruner, weights=["conv2.weight", "fc?.weight"], n=1, m=4)
