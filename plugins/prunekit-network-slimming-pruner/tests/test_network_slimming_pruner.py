"""Network slimming: channels by their scales, shifts and filters beside them, floors, and what is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_network_slimming_pruner import NetworkSlimmingPruner, NetworkSlimmingPruner_AGP
from torch import Tensor, nn

from prunekit import CompressionScheduler, Schedule, ScheduleError, Trace
from prunekit.testing import TinyNet, check_component

README = Path(__file__).parents[1] / "README.md"
SCALES = ["bn1.weight", "bn2.weight"]


class Net(nn.Module):
    """Two convolutions with batch normalizations of given scales, and a third without."""

    def __init__(self, first: Iterable[float], second: Iterable[float]) -> None:
        super().__init__()
        one, two = torch.tensor([*first]), torch.tensor([*second])
        self.conv1, self.bn1 = nn.Conv2d(1, len(one), 1), nn.BatchNorm2d(len(one))
        self.conv2, self.bn2 = nn.Conv2d(len(one), len(two), 3), nn.BatchNorm2d(len(two))
        self.conv3, self.ln = nn.Conv2d(len(two), 2, 1), nn.LayerNorm(2)
        with torch.no_grad():
            self.bn1.weight.copy_(one)
            self.bn2.weight.copy_(two)
            self.bn1.bias.fill_(0.5)
            self.bn2.bias.fill_(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.ln(self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(images)).relu()))).mean((2, 3)))


def net() -> Net:
    return Net([0.1, -0.9, 0.2, 0.8], [0.3, 0.7, -0.4, 0.6, 0.5, 1.0])


def scheduler(model: nn.Module, cls: str = "NetworkSlimmingPruner", epochs: Any = (0,), **keys: Any) -> Any:
    schedule = {
        "version": 1,
        "pruners": {"p": {"class": cls, "weights": SCALES, **keys}},
        "policies": [{"pruner": {"instance_name": "p"}, "epochs": list(epochs)}],
    }
    return CompressionScheduler.from_dict(schedule, model)


def pruned_by(model: nn.Module, sparsity: float, **keys: Any) -> dict[str, list[int]]:
    """The channels that one epoch prunes, by parameter; a parameter of another shape must lose whole ones."""
    run = scheduler(model, desired_sparsity=sparsity, **keys)
    run.on_epoch_begin(0)
    gone = {}
    for name, mask in run.masks.items():
        channels = mask.reshape(len(mask), -1)
        assert torch.equal(channels.all(1), channels.any(1))
        gone[name] = (~channels.any(1)).nonzero().flatten().tolist()
    return gone


# Which channels


def test_the_smallest_scales_of_all_layers_go_and_their_shifts_with_them():
    model = net()
    gone = {"bn1.weight": [0, 2], "bn1.bias": [0, 2], "bn2.weight": [0, 2], "bn2.bias": [0, 2]}
    assert pruned_by(model, 0.4) == gone
    assert model.bn1.bias.tolist() == [0, 0.5, 0, 0.5]


def test_what_a_pruned_channel_gives_is_exactly_zero():
    model = net()
    pruned_by(model, 0.4)
    given = model.bn1(model.conv1(torch.randn(3, 1, 5, 5)))
    assert [bool(given[:, channel].any()) for channel in range(4)] == [False, True, False, True]


@pytest.mark.parametrize(("sparsity", "count"), [(0, 0), (0.09, 0), (0.1, 1), (0.59, 5), (0.8, 8)])
def test_the_count_is_that_of_all_channels_together_rounded_down(sparsity: float, count: int):
    gone = pruned_by(net(), sparsity)
    assert sum(len(channels) for name, channels in gone.items() if name in SCALES) == count


def test_of_equal_scales_the_channels_of_the_first_layer_go_and_in_it_the_first():
    gone = pruned_by(Net([1.0] * 4, [-1.0] * 4), 0.5)
    assert gone == {"bn1.weight": [0, 1, 2], "bn1.bias": [0, 1, 2], "bn2.weight": [0], "bn2.bias": [0]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_count_is_exact_in_every_type(dtype: torch.dtype):
    scales = torch.arange(256, 512).to(dtype).tolist()  # full of ties in bfloat16
    gone = pruned_by(Net(scales, scales[::-1]).to(dtype), 0.3)
    assert len(gone["bn1.weight"]) + len(gone["bn2.weight"]) == math.floor(0.3 * 512)


# Filters


def test_filters_go_with_the_channels_where_they_are_named():
    gone = pruned_by(net(), 0.4, filters=["conv1.weight", "conv2.weight"])
    assert (gone["conv1.weight"], gone["conv2.weight"]) == ([0, 2], [0, 2])
    assert "conv1.weight" not in pruned_by(net(), 0.4)


def test_the_network_computes_the_same_whether_filters_go_or_not():
    images, outputs = torch.randn(4, 1, 5, 5), []
    for filters in (None, ["conv1.weight", "conv2.weight"]):
        torch.manual_seed(0)
        model = net()
        pruned_by(model, 0.4, filters=filters)
        outputs.append(model(images))
    assert torch.equal(*outputs)


# Floors


def test_one_channel_of_each_layer_always_stays():
    gone = pruned_by(Net([0.1, 0.2, 0.3], [1.0, 2.0, 3.0]), 0.5)
    assert (gone["bn1.weight"], gone["bn2.weight"]) == ([0, 1], [0])


@pytest.mark.parametrize(
    ("floor", "first", "second"), [(0.25, [0, 1, 2], [0]), (0.5, [0, 1], [0, 1]), (0.26, [0, 1], [0, 1])]
)
def test_a_floor_stays_of_each_layer_and_the_others_make_up_for_it(floor: float, first: Any, second: Any):
    gone = pruned_by(Net([0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]), 0.5, floor=floor)
    assert (gone["bn1.weight"], gone["bn2.weight"]) == (first, second)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"desired_sparsity": 1}, "the layers keep 2 of 10 channels in any case, so 8 can go, and 1 asks for 10"),
        (
            {"desired_sparsity": 0.6, "floor": 0.5},
            "the layers keep 5 of 10 channels in any case, so 5 can go, and 0.6 asks for 6",
        ),
    ],
)
def test_a_sparsity_that_the_floor_does_not_allow_is_refused_at_load(keys: dict[str, float], message: str):
    with pytest.raises(ScheduleError) as error:
        scheduler(net(), **keys)
    (problem,) = error.value.problems
    assert (problem.path, problem.message) == ("pruners.p.floor", message)


# Selectors


@pytest.mark.parametrize(
    "weights",
    ["bn?.weight", "re:bn[12].weight", ["bn1.weight", "bn2.*"], "re:bn.*", ["bn1.weight", "bn2.weight", "bn2.bias"]],
)
def test_scales_may_be_selected_in_any_way(weights: Any):
    assert sorted(pruned_by(net(), 0.4, weights=weights)) == ["bn1.bias", "bn1.weight", "bn2.bias", "bn2.weight"]


def test_only_the_selected_layers_share_the_budget():
    assert pruned_by(net(), 0.5, weights="bn2.weight") == {"bn2.weight": [0, 2, 4], "bn2.bias": [0, 2, 4]}


NO_SCALE = "and is no scale of a batch normalization"
NOWHERE = "and no batch normalization of `weights` alone takes what it puts out"


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        ({"weights": "conv1.weight"}, "weights", f"'conv1.weight' has shape [4, 1, 1, 1] {NO_SCALE}"),
        ({"weights": ["bn1.weight", "ln.weight"]}, "weights[1]", f"'ln.weight' has shape [2] {NO_SCALE}"),
        ({"weights": ["bn1.weight", "bn2.bias"]}, "weights[1]", f"'bn2.bias' has shape [6] {NO_SCALE}"),
        (
            {"filters": ["conv1.weight", "conv3.weight"]},
            "filters[1]",
            f"'conv3.weight' has shape [2, 6, 1, 1], {NOWHERE}",
        ),
        (
            {"weights": "bn1.weight", "filters": "conv2.weight"},
            "filters",
            f"'conv2.weight' has shape [6, 4, 3, 3], {NOWHERE}",
        ),
        ({"weights": []}, "weights", "selects nothing: name at least one parameter, or '*'"),
        ({"filters": []}, "filters", "selects nothing: name at least one parameter, or '*'"),
    ],
)
def test_a_parameter_that_goes_with_no_channel_is_refused_at_load(keys: dict[str, Any], path: str, message: str):
    with pytest.raises(ScheduleError) as error:
        scheduler(net(), desired_sparsity=0.4, **keys)
    assert (f"pruners.p.{path}", message) in [(problem.path, problem.message) for problem in error.value.problems]
    assert len(error.value.problems) <= 2


def test_filters_of_a_model_that_can_not_be_traced_are_refused_at_load():
    class Fickle(Net):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) if images.sum() > 0 else images

    model = Fickle([0.1, 0.2], [0.3, 0.4])
    scheduler(model, desired_sparsity=0.4)
    with pytest.raises(ScheduleError, match=r"filters: 'conv1\.weight' goes with no channels: torch\.fx can't trace"):
        scheduler(model, desired_sparsity=0.4, filters="conv1.weight")


# Gradually


def test_the_sparsity_follows_the_curve_over_the_active_epochs():
    model = net()
    keys = {"initial_sparsity": 0, "final_sparsity": 0.8, "curve": "linear"}
    run = scheduler(model, "NetworkSlimmingPruner_AGP", range(5), **keys)
    zeros = []
    for epoch in range(5):
        run.on_epoch_begin(epoch)
        zeros.append((int((model.bn1.weight == 0).sum()), int((model.bn2.weight == 0).sum())))
    assert zeros == [(0, 0), (2, 0), (2, 2), (2, 4), (3, 5)]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=9),
    st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=9),
    st.floats(0, 0.2),
    st.floats(0.1, 0.3),
)
def test_while_scales_stand_still_masks_are_nested_and_end_exactly_at_the_budget(first, second, initial, rise):
    model = Net(first, second)
    keys = {"initial_sparsity": initial, "final_sparsity": initial + rise}
    run = scheduler(model, "NetworkSlimmingPruner_AGP", range(4), **keys)
    gone: set[tuple[str, int]] = set()
    for epoch in range(4):
        for again in range(2):
            run.on_epoch_begin(epoch)
            scales = {name: mask for name, mask in run.masks.items() if name in SCALES}
            now = {(name, i) for name, mask in scales.items() for i in (~mask).nonzero().flatten().tolist()}
            assert gone <= now if again == 0 else gone == now
            gone = now
    assert len(gone) == math.floor((initial + rise) * (len(first) + len(second)))


# The card, and the laws of every component


def test_the_schedule_of_the_card_ends_where_the_card_says():
    (yaml,) = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    model = TinyNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = CompressionScheduler(Schedule.from_text(yaml), model, optimizer, trace=Trace(level="error"))
    zeros = []
    for _ in run.epochs(6):
        for images in run.minibatches([torch.randn(8, 1, 8, 8)]):
            optimizer.zero_grad()
            run.total_loss(model(images).square().mean()).backward()
            optimizer.step()
        filters = [bool(kernel.any()) for kernel in model.conv1.weight]
        zeros.append((int((model.norm.weight == 0).sum()), filters.count(False)))
    assert zeros == [(0, 0)] * 4 + [(2, 2)] * 2


def test_it_keeps_the_laws():
    check_component(NetworkSlimmingPruner, weights="norm.weight", desired_sparsity=0.5)


def test_it_keeps_the_laws_gradually():
    keys = {"initial_sparsity": 0.25, "final_sparsity": 0.75}
    check_component(NetworkSlimmingPruner_AGP, weights="norm.weight", filters="conv1.weight", **keys)
