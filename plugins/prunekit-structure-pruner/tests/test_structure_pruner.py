"""Structure pruning by thresholds: every group type and criterion by hand, exactness, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_structure_pruner import GroupType, StructureParameterPruner
from torch import Tensor, nn

from prunekit import CompressionScheduler, Progress, Schedule, ScheduleError, Window
from prunekit.components import Context
from prunekit.testing import check_component

MATRIX = [[3.0, 4.0], [0.0, -12.0], [0.0, 0.0]]
# Filter 0: kernels [3, 4] and [0, 0]; filter 1: kernels [12, 0] and [0, 5].
FILTERS = [[[[3.0, -4.0]], [[0.0, 0.0]]], [[[12.0, 0.0]], [[0.0, 5.0]]]]


class Net(nn.Module):
    """fc [3, 2] and conv [2, 2, 1, 2], with the numbers above."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.conv = nn.Linear(2, 3), nn.Conv2d(2, 2, (1, 2))
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor(MATRIX))
            self.conv.weight.copy_(torch.tensor(FILTERS))


def parameter_of(group: str) -> str:
    return "fc.weight" if group in ("Rows", "Cols") else "conv.weight"


def scheduler(net: nn.Module, regims: Any, criteria: Any = "Mean_Abs", args: Any = None) -> CompressionScheduler:
    pruner = {"class": "StructureParameterPruner", "reg_regims": regims, "threshold_criteria": criteria}
    policy = {"pruner": {"instance_name": "s", "args": args or {}}, "epochs": [0, 1]}
    return CompressionScheduler.from_dict({"version": 1, "pruners": {"s": pruner}, "policies": [policy]}, net)


def pruned(group: str, threshold: float, criteria: str) -> Any:
    net, name = Net(), parameter_of(group)
    scheduler(net, {name: [threshold, group]}, criteria).on_epoch_begin(0)
    return net.get_parameter(name).tolist()


# Which groups

NOTHING_OF_CONV = [[[[0, 0]], [[0, 0]]], [[[0, 0]], [[0, 0]]]]


# Means of rows 3.5, 6, 0 and of columns 1, 16/3; of kernels 3.5, 0, 6, 2.5, filters 1.75, 4.25, channels 4.75, 1.25;
# of all of conv 3. A group on the threshold goes.
@pytest.mark.parametrize(
    ("group", "threshold", "kept"),
    [
        ("Rows", 3.4, [[3, 4], [0, -12], [0, 0]]),
        ("Rows", 3.5, [[0, 0], [0, -12], [0, 0]]),
        ("Cols", 0.9, MATRIX),
        ("Cols", 1.0, [[0, 4], [0, -12], [0, 0]]),
        ("Cols", 5.4, [[0, 0], [0, 0], [0, 0]]),
        ("2D", 2.5, [[[[3, -4]], [[0, 0]]], [[[12, 0]], [[0, 0]]]]),
        ("3D", 1.75, [[[[0, 0]], [[0, 0]]], [[[12, 0]], [[0, 5]]]]),
        ("Filters", 1.75, [[[[0, 0]], [[0, 0]]], [[[12, 0]], [[0, 5]]]]),
        ("Filters", 1.7, FILTERS),
        ("Channels", 2.0, [[[[3, -4]], [[0, 0]]], [[[12, 0]], [[0, 0]]]]),
        ("4D", 2.9, FILTERS),
        ("4D", 3.0, NOTHING_OF_CONV),
    ],
)
def test_mean_abs_prunes_groups_whose_mean_is_at_most_the_threshold(group, threshold, kept):
    assert pruned(group, threshold, "Mean_Abs") == kept


@pytest.mark.parametrize(
    ("group", "threshold", "kept"),
    [
        ("Rows", 3.9, [[3, 4], [0, -12], [0, 0]]),
        ("Rows", 4.0, [[0, 0], [0, -12], [0, 0]]),
        ("Cols", 3.0, [[0, 4], [0, -12], [0, 0]]),
        ("2D", 4.0, [[[[0, 0]], [[0, 0]]], [[[12, 0]], [[0, 5]]]]),
        ("3D", 4.0, [[[[0, 0]], [[0, 0]]], [[[12, 0]], [[0, 5]]]]),
        ("Filters", 3.9, FILTERS),
        ("Channels", 5.0, [[[[3, -4]], [[0, 0]]], [[[12, 0]], [[0, 0]]]]),
        ("4D", 11.9, FILTERS),
        ("4D", 12.0, NOTHING_OF_CONV),
    ],
)
def test_max_prunes_groups_whose_largest_magnitude_is_at_most_the_threshold(group, threshold, kept):
    assert pruned(group, threshold, "Max") == kept


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5)])
@pytest.mark.parametrize("group", ["Rows", "Cols"])
def test_the_mean_of_a_row_or_column_of_ones_is_one_whatever_the_shape(shape, group):
    net = nn.Linear(shape[1], shape[0])
    with torch.no_grad():
        net.weight.fill_(1)
    run = scheduler(net, {"weight": [0.999, group]})
    run.on_epoch_begin(0)
    assert run.masks["weight"].all()
    scheduler(net, {"weight": [1.0, group]}).on_epoch_begin(0)
    assert not net.weight.any()


def test_each_parameter_has_its_own_threshold_and_groups_and_others_are_left_alone():
    net = Net()
    bias = net.fc.bias.tolist()
    run = scheduler(net, {"fc.weight": [3.5, "Rows"], "conv.weight": [2.0, "Channels"]})
    run.on_epoch_begin(0)
    assert net.fc.weight.tolist() == [[0, 0], [0, -12], [0, 0]]
    assert net.conv.weight.tolist() == [[[[3, -4]], [[0, 0]]], [[[12, 0]], [[0, 0]]]]
    assert (net.fc.bias.tolist(), set(run.masks)) == (bias, {"fc.weight", "conv.weight"})


def test_what_has_gone_stays_and_what_shrinks_goes_later():
    net = Net()
    run = scheduler(net, {"fc.weight": [3.5, "Rows"]})
    run.on_epoch_begin(0)
    with torch.no_grad():
        net.fc.weight.mul_(0.5)  # the mean of row 1 is now 3
    run.on_epoch_begin(1)
    assert not net.fc.weight.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_mean_is_not_rounded_to_the_type_of_the_weights(dtype):
    # 1000 weights of 1, and one of 2: their mean is 1.000999. In bfloat16 the sum 1002 is 1000, and the mean 1.
    net = nn.Linear(1001, 1).to(dtype)
    with torch.no_grad():
        net.weight.fill_(1)[0, 0] = 2
    scheduler(net, {"weight": [1.0005, "Rows"]}).on_epoch_begin(0)
    assert net.weight.all()


def test_filters_and_channels_of_other_convolutions_have_groups_too():
    net = nn.Conv1d(2, 2, 3)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[[1.0, 1, 1], [3, 3, 3]], [[2, 2, 2], [1, 1, 1]]]))
    scheduler(net, {"weight": [1.5, "Filters"]}).on_epoch_begin(0)
    assert net.weight.tolist() == [[[1, 1, 1], [3, 3, 3]], [[0, 0, 0], [0, 0, 0]]]


# What is refused


def test_what_does_not_fit_is_refused_at_load_with_its_position(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"

    def problems(regims: str, criteria: str = "Mean_Abs") -> list[str]:
        component = f"pruners:\n  s:\n    class: StructureParameterPruner\n    threshold_criteria: {criteria}\n"
        policies = "policies:\n  - pruner: {instance_name: s}\n    epochs: [0]\n"
        path.write_text(f"version: 1\n{component}    reg_regims:\n{regims}\n{policies}")
        with pytest.raises(ScheduleError) as caught:
            CompressionScheduler.from_yaml(path, Net())
        return [f"{p.position.line}:{p.position.column} {p.path}: {p.message}" for p in caught.value.problems]

    where, convolution = "pruners.s.reg_regims", "'2D', '3D', 'Filters', 'Channels', '4D'"
    assert problems("      fc.weight: [0.1, rows]\n      conv.weight: [-1, 3D]", "Mean") == [
        "5:25 pruners.s.threshold_criteria: must be 'Mean_Abs' or 'Max', got 'Mean'",
        f"7:24 {where}.fc.weight[1]: must be '2D', '3D', 'Filters', 'Channels', 'Rows', 'Cols' or '4D', got 'rows'",
        f"8:21 {where}.conv.weight[0]: must be greater than or equal to 0, got -1",
    ]
    assert problems("      fc.*: [0.1, 3D]\n      conv.weight: [0.1, Rows]") == [
        f"7:13 {where}.fc.*: 'fc.weight' has shape [3, 2] and no groups '3D'; it has 'Rows', 'Cols'",
        f"7:13 {where}.fc.*: 'fc.bias' has shape [3] and no groups '3D'; a vector has no groups at all",
        f"8:20 {where}.conv.weight: 'conv.weight' has shape [2, 2, 1, 2] and no groups 'Rows'; it has {convolution}",
    ]
    assert problems("      {}") == [f"7:7 {where}: selects nothing: name at least one parameter, or '*'"]


@pytest.mark.parametrize("group", ["Rows+Cols", "Channels+4D"])
def test_groups_of_two_shapes_are_a_regularizers(group):
    with pytest.raises(ScheduleError, match=f"got '{re.escape(group)}'"):
        scheduler(Net(), {"fc.weight": [0.1, group]})


def test_the_criterion_must_be_given():
    data = {"class": "StructureParameterPruner", "reg_regims": {"fc.weight": [1.0, "Rows"]}}
    policy = {"pruner": {"instance_name": "s"}, "epochs": [0]}
    with pytest.raises(ScheduleError, match="threshold_criteria"):
        CompressionScheduler.from_dict({"version": 1, "pruners": {"s": data}, "policies": [policy]}, Net())


# For any weights

eight = st.lists(st.integers(-9, 9).map(float), min_size=8, max_size=8)
groups = st.sampled_from(get_args(GroupType))
criterias = st.sampled_from(["Mean_Abs", "Max"])
INSIDE = {"2D": (2, 3), "3D": (1, 2, 3), "Filters": (1, 2, 3), "Channels": (0, 2, 3), "4D": (0, 1, 2, 3)}
INSIDE |= {"Rows": (1,), "Cols": (0,)}


def chosen(weight: Tensor, group: Any, threshold: float, criteria: Any) -> Tensor:
    pruner = StructureParameterPruner(reg_regims={"w": (threshold, group)}, threshold_criteria=criteria)
    context = Context(nn.Identity(), {}, Progress(0), Window(0, 1), {"w": (threshold, group)}, {})
    return pruner.compute_masks({"w": nn.Parameter(weight)}, context)["w"]


def shaped(values: list[float], group: str) -> Tensor:
    return torch.tensor(values).reshape((4, 2) if parameter_of(group) == "fc.weight" else (2, 2, 1, 2))


@settings(deadline=None)
@given(eight, groups, criterias, st.integers(0, 9))
def test_a_group_goes_as_one_and_by_its_own_magnitude_alone(values, group, criteria, threshold):
    weight = shaped(values, group)
    mask = chosen(weight, group, threshold, criteria)
    magnitudes = weight.double().abs()
    inside = INSIDE[group]
    measured = (
        magnitudes.mean(inside, keepdim=True) if criteria == "Mean_Abs" else magnitudes.amax(inside, keepdim=True)
    )
    assert torch.equal(mask, (measured > threshold).expand_as(weight))


@settings(deadline=None)
@given(eight, groups, criterias, st.integers(0, 9), st.integers(0, 9))
def test_a_greater_threshold_keeps_no_more_and_asked_again_it_keeps_the_same(values, group, criteria, one, other):
    weight, (low, high) = shaped(values, group), sorted((one, other))
    many, few = chosen(weight, group, low, criteria), chosen(weight, group, high, criteria)
    assert not (few & ~many).any()
    assert torch.equal(chosen(weight * many, group, low, criteria), many)


@settings(deadline=None)
@given(eight, groups, criterias, st.integers(0, 9))
def test_turned_weights_have_turned_masks(values, group, criteria, threshold):
    weight = shaped(values, group)
    dims = tuple(range(weight.dim()))
    mask = chosen(weight, group, threshold, criteria)
    assert torch.equal(chosen(weight.flip(dims), group, threshold, criteria), mask.flip(dims))


# The card


def test_the_schedule_of_the_card_does_what_the_card_says():
    card = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (schedule, *_) = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    torch.manual_seed(0)
    net = nn.ModuleDict({"conv1": nn.Conv2d(3, 8, 3), "conv2": nn.Conv2d(8, 8, 3)})
    net.update({"conv3": nn.Conv2d(8, 16, 1), "fc": nn.Linear(16, 4)})
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                for dim in (0, 1):
                    sizes = torch.linspace(0.5, 1.7, parameter.shape[dim])
                    parameter *= sizes.reshape(-1, *[1] * (parameter.dim() - 1 - dim))
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    run = CompressionScheduler(Schedule.from_text(schedule), net)
    for epoch in range(12):
        run.on_epoch_begin(epoch)
        run.on_epoch_end(epoch)
    claims = [("conv1", 0.08, (2, 3)), ("conv2", 0.04, (1, 2, 3)), ("conv3", 0.1, (0, 2, 3)), ("fc", 0.08, (1,))]
    for layer, threshold, inside in claims:
        assert re.search(rf"{layer}.weight: \[{threshold}, ", schedule)
        weight = before[f"{layer}.weight"]
        kept = weight.abs().mean(inside, keepdim=True) > threshold
        assert 0 < kept.float().mean() < 1, "some stay and some go"
        torch.testing.assert_close(net[layer].weight.detach(), weight * kept, rtol=0, atol=0)


# The laws of every component


@pytest.mark.parametrize(("criteria", "threshold"), [("Mean_Abs", 0.2), ("Max", 0.7)])
def test_it_keeps_the_laws(criteria, threshold):
    regims = {"conv1.weight": [threshold, "2D"], "conv2.weight": [0.2, "3D"], "fc1.weight": [threshold, "Cols"]}
    check_component(StructureParameterPruner, reg_regims=regims, threshold_criteria=criteria)


@pytest.mark.parametrize("group", ["3D", "Filters", "Channels"])
def test_outputs_and_inputs_of_a_transposed_convolution_are_refused_by_these_names(group):
    net = nn.Sequential(nn.ConvTranspose2d(2, 3, 2))
    with pytest.raises(ScheduleError) as caught:
        scheduler(net, {"0.weight": [0.5, group]})
    (problem,) = caught.value.problems
    expected = f"'0.weight' belongs to a ConvTranspose2d: its dimension 0 is inputs, and {group!r} takes it for outputs"
    assert problem.message == expected
    scheduler(net, {"0.weight": [0.5, "2D"]})
