"""GroupVarianceRegularizer: the penalty and its gradient by hand, channels that do not differ, and what is refused."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from prunekit_group_variance_regularizer import GroupVarianceRegularizer
from structlog.testing import capture_logs
from torch import Tensor, nn

from prunekit import CompressionScheduler, Progress, Schedule, ScheduleError, Window
from prunekit.components import Context
from prunekit.testing import check_component

# Channel 0 is [3, 4] and channel 1 is [1, 0]: norms 5 and 1, mean 3, variance 2² + 2² = 8 with n - 1 = 1 below it.
CHANNELS = [[[[3.0, 4.0]], [[1.0, 0.0]]]]


class Net(nn.Module):
    """conv [1, 2, 1, 2] with the numbers above, other [2, 2, 1, 1], fc [3, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other, self.fc = nn.Conv2d(2, 1, (1, 2)), nn.Conv2d(2, 2, 1), nn.Linear(2, 3)
        self.one = nn.Conv2d(1, 4, 3)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor(CHANNELS))
            self.other.weight.copy_(torch.tensor([[0.0, 3.0], [1.0, 4.0]]).reshape(2, 2, 1, 1))  # norms 1, 5 again


def attach(net: nn.Module, regims: Any) -> CompressionScheduler:
    regularizer = {"class": "GroupVarianceRegularizer", "reg_regims": regims}
    policy = {"regularizer": {"instance_name": "gv"}, "starting_epoch": 0, "ending_epoch": 2}
    data = {"version": 1, "regularizers": {"gv": regularizer}, "policies": [policy]}
    return CompressionScheduler.from_dict(data, net)


def total_loss(net: nn.Module, regims: Any, epoch: int = 0) -> Tensor:
    run = attach(net, regims)
    run.on_epoch_begin(epoch)
    run.on_minibatch_begin(epoch, 0, 1)
    return run.before_backward_pass(epoch, 0, 1, torch.tensor(10.0))


def penalty_of(weight: Tensor, strength: float = 1.0) -> Tensor:
    regularizer = GroupVarianceRegularizer({"w": (strength, "Channels")})
    context = Context(nn.Identity(), {}, Progress(0), Window(0, 1), {"w": (strength, "Channels")}, {})
    return regularizer.penalty({"w": weight}, context)  # type: ignore[dict-item]


# The penalty


def test_the_penalty_is_the_strength_over_the_variance_of_the_channels_norms():
    assert total_loss(Net(), {"conv.weight": [4.0, "Channels"]}).item() == 10 + 4 / 8


def test_the_strength_scales_the_penalty():
    assert [total_loss(Net(), {"conv.weight": [s, "Channels"]}).item() for s in (0, 4, 8)] == [10, 10.5, 11]


def test_each_parameter_has_its_own_strength_and_variance():
    regims = {"conv.weight": [4.0, "Channels"], "other.weight": [8.0, "Channels"]}
    assert total_loss(Net(), regims).item() == pytest.approx(10 + 4 / 8 + 8 / 8)


def test_nothing_is_added_outside_the_window():
    assert total_loss(Net(), {"conv.weight": [4.0, "Channels"]}, epoch=2).item() == 10


def test_the_gradient_drives_the_norms_apart():
    # d(4 / v) = -4 / v² dv, v = (a - b)² / 2, so dv/da = a - b = 4: a falls by 4 / 64 · 4 = 0.25 along w / |w|.
    net = Net()
    total_loss(net, {"conv.weight": [4.0, "Channels"]}).backward()
    torch.testing.assert_close(net.conv.weight.grad, torch.tensor([[[[-0.15, -0.2]], [[0.25, 0.0]]]]))


@settings(deadline=None)
@given(st.lists(st.integers(-9, 9).map(float), min_size=12, max_size=12), st.integers(1, 9))
def test_it_is_the_definition_and_falls_with_the_square_of_the_weights(values, scale):
    weight = torch.tensor(values).reshape(2, 3, 1, 2)
    variance = weight.transpose(0, 1).reshape(3, 4).norm(dim=1).var()
    assume(variance > 1e-3)
    assert penalty_of(weight, 2.0).item() == pytest.approx(2 / variance.item(), rel=1e-4)
    assert penalty_of(scale * weight, 2.0).item() == pytest.approx(2 / variance.item() / scale**2, rel=1e-4)
    assert penalty_of(weight.flip(1), 2.0).item() == pytest.approx(2 / variance.item(), rel=1e-4)


# Channels that do not differ


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e-20, 1e10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_channels_of_one_norm_have_no_penalty_and_a_gradient_of_zero(value, dtype):
    weight = torch.full((5, 7, 3, 3), value, dtype=dtype, requires_grad=True)
    penalty = penalty_of(weight)
    penalty.backward()
    assert (penalty.item(), bool(weight.grad.any())) == (0, False)


def test_channels_of_one_norm_but_for_rounding_are_not_taken_apart_by_it():
    torch.manual_seed(0)
    weight = torch.randn(8, 16, 3, 3)
    weight /= weight.norm(2, (0, 2, 3), keepdim=True)  # all norms 1, but for the last bits
    weight.requires_grad_()
    penalty = penalty_of(weight)
    penalty.backward()
    assert (penalty.item(), bool(weight.grad.any())) == (0, False)


def test_one_parameter_without_a_variance_leaves_the_others_their_penalty():
    net = Net()
    with torch.no_grad():
        net.other.weight.fill_(1)
    regims = {"conv.weight": [4.0, "Channels"], "other.weight": [8.0, "Channels"]}
    loss = total_loss(net, regims)
    loss.backward()
    assert (loss.item(), net.other.weight.grad.any().item(), net.conv.weight.grad.any().item()) == (10.5, False, True)


def test_the_trace_warns_of_them_once_an_epoch():
    net = Net()
    with torch.no_grad():
        net.other.weight.fill_(1)
    with capture_logs() as lines:
        run = attach(net, {"other.weight": [8.0, "Channels"], "conv.weight": [1.0, "Channels"]})
        for _ in run.epochs(2):
            for _ in run.minibatches([None] * 3):
                run.total_loss(torch.zeros(()))
    warnings = [line for line in lines if line["event"] == "channels whose norms do not differ, no penalty"]
    assert [(line["log_level"], line["parameter"], line["epoch"]) for line in warnings] == [
        ("warning", "other.weight", epoch) for epoch in (0, 1)
    ]


# What is refused


def test_what_does_not_fit_is_refused_at_load_with_its_position(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"

    def problems(regims: str) -> list[str]:
        component = "regularizers:\n  gv:\n    class: GroupVarianceRegularizer\n    reg_regims:\n"
        policies = "policies:\n  - regularizer: {instance_name: gv}\n    epochs: [0]\n"
        path.write_text(f"version: 1\n{component}{regims}\n{policies}")
        with pytest.raises(ScheduleError) as caught:
            CompressionScheduler.from_yaml(path, Net())
        return [f"{p.position.line}:{p.position.column} {p.path}: {p.message}" for p in caught.value.problems]

    where = "regularizers.gv.reg_regims"
    assert problems("      conv.weight: [0.1, Filters]\n      other.weight: [-1, Channels]") == [
        f"6:26 {where}.conv.weight[1]: must be 'Channels', got 'Filters'",
        f"7:22 {where}.other.weight[0]: must be greater than or equal to 0, got -1",
    ]
    assert problems("      fc.weight: [0.1, Channels]\n      one.weight: [0.1, Channels]") == [
        f"6:18 {where}.fc.weight: 'fc.weight' has shape [3, 2] and no groups 'Channels'",
        f"7:19 {where}.one.weight: 'one.weight' has 1 channel: a variance takes two",
    ]
    assert problems("      {}") == [f"6:7 {where}: selects nothing: name at least one parameter, or '*'"]


# The card


def test_under_the_schedule_of_the_card_the_variance_rises_as_the_card_says():
    card = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (schedule, *_) = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    assert "the variance of the channels' norms rises, in `conv2` and in `conv3`" in card
    torch.manual_seed(0)
    net = nn.ModuleDict({"conv2": nn.Conv2d(8, 8, 3), "conv3": nn.Conv2d(8, 16, 1)})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    run = CompressionScheduler(Schedule.from_text(schedule), net, optimizer)

    def variances() -> list[float]:
        return [layer.weight.detach().transpose(0, 1).flatten(1).norm(dim=1).var().item() for layer in net.values()]

    seen = [variances()]
    for _ in run.epochs(20):
        for _ in run.minibatches([None]):
            optimizer.zero_grad()
            run.total_loss(torch.zeros(())).backward()
            optimizer.step()
        seen.append(variances())
    assert all(after > before for one, next_ in pairwise(seen) for before, after in zip(one, next_, strict=True))


# The laws of every component


def test_it_keeps_the_laws():
    check_component(GroupVarianceRegularizer, reg_regims={"conv2.weight": [0.01, "Channels"]})
