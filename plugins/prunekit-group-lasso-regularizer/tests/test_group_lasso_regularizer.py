"""GroupLassoRegularizer: the penalty of every group type, its gradient, thresholding, and misfits."""

from collections.abc import Callable, Mapping
from math import sqrt
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, strategies as st
from prunekit_group_lasso_regularizer import GroupLassoRegularizer, GroupType
from torch import Tensor, nn

from prunekit import ArgumentError, CompressionScheduler, Progress, ScheduleError, Trace, Window
from prunekit.components import Context
from prunekit.testing import check_component
from prunekit.trace import read

MATRIX = [[3.0, 4.0], [0.0, 12.0], [0.0, 0.0]]
# Filter 0: kernels [3, 4] and [0, 0]; filter 1: kernels [12, 0] and [0, 5].
FILTERS = [[[[3.0, 4.0]], [[0.0, 0.0]]], [[[12.0, 0.0]], [[0.0, 5.0]]]]
CHANNELS = 13 + 5
BY_HAND = {
    "2D": 5 + 0 + 12 + 5,
    "3D": 5 + 13,
    "Filters": 5 + 13,
    "4D": sqrt(9 + 16 + 144 + 25),
    "Channels": CHANNELS,
    "Rows": 5 + 12 + 0,
    "Cols": 3 + sqrt(160),
    "Rows+Cols": 17 + 3 + sqrt(160),
    "Cols+Rows": 17 + 3 + sqrt(160),
    "Channels+4D": CHANNELS + sqrt(194),
    "4D+Channels": CHANNELS + sqrt(194),
}


class Net(nn.Module):
    """fc [3, 2] and conv [2, 2, 1, 2], with the numbers above."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.conv = nn.Linear(2, 3), nn.Conv2d(2, 2, (1, 2))
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor(MATRIX))
            self.conv.weight.copy_(torch.tensor(FILTERS))


def parameter_of(group: str) -> str:
    return "fc.weight" if "Rows" in group or "Cols" in group else "conv.weight"


def schedule(regims: Mapping[str, Any], args: Mapping[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    regularizer = {"class": "GroupLassoRegularizer", "reg_regims": dict(regims), **keys}
    policy = {"regularizer": {"instance_name": "gl", "args": dict(args or {})}, "starting_epoch": 0, "ending_epoch": 2}
    return {"version": 1, "regularizers": {"gl": regularizer}, "policies": [policy]}


def attach(net: nn.Module, data: Mapping[str, Any], trace: Trace | None = None) -> CompressionScheduler:
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    return CompressionScheduler.from_dict(data, net, optimizer, trace=trace or Trace(logger=None))


def total_loss(net: nn.Module, regims: Mapping[str, Any], epoch: int = 0) -> Tensor:
    scheduler = attach(net, schedule(regims))
    scheduler.on_epoch_begin(epoch)
    scheduler.on_minibatch_begin(epoch, 0, 1)
    return scheduler.before_backward_pass(epoch, 0, 1, torch.tensor(10.0))


def run(net: nn.Module, data: Mapping[str, Any], step: Callable[[], None] = lambda: None, epochs: int = 1) -> Any:
    """Both weights after each epoch of one mini-batch; `step` stands for the optimizer's."""
    scheduler, weights = attach(net, data), []
    for epoch in range(epochs):
        scheduler.on_epoch_begin(epoch)
        scheduler.on_minibatch_begin(epoch, 0, 1)
        step()
        scheduler.on_minibatch_end(epoch, 0, 1)
        scheduler.on_epoch_end(epoch)
        weights.append({"fc.weight": net.fc.weight.tolist(), "conv.weight": net.conv.weight.tolist()})
    return weights


def dropped(group: str, strength: float, criterion: str) -> Any:
    name = parameter_of(group)
    data = schedule({name: [strength, group]}, threshold_criteria=criterion)
    return run(Net(), data)[0][name]


def direct(values: list[float], group: str, strength: float = 1.0) -> tuple[float, Tensor]:
    """Penalty and mask of a tensor of eight numbers, shaped as the group needs it."""
    weight = nn.Parameter(torch.tensor(values).reshape((4, 2) if parameter_of(group) == "fc.weight" else (2, 2, 1, 2)))
    regularizer = GroupLassoRegularizer({"w": (strength, group)}, "Mean_Abs")  # type: ignore[dict-item]
    context = Context(nn.Identity(), {}, Progress(0), Window(0, 1), {"w": [strength, group]}, {})
    penalty = regularizer.penalty({"w": weight}, context)
    return penalty.item(), regularizer.compute_masks({"w": weight.detach()}, context)["w"]  # type: ignore[dict-item]


eight = st.lists(st.floats(-100, 100, width=32), min_size=8, max_size=8)
groups = st.sampled_from(get_args(GroupType))


def test_every_group_type_has_a_penalty_by_hand() -> None:
    assert set(BY_HAND) == set(get_args(GroupType))


@pytest.mark.parametrize("group", BY_HAND)
def test_the_penalty_is_the_strength_times_the_sum_of_the_groups_norms(group: str) -> None:
    loss = total_loss(Net(), {parameter_of(group): [0.5, group]})
    assert loss.item() == pytest.approx(10 + 0.5 * BY_HAND[group], abs=1e-5)


def test_each_parameter_has_its_own_strength_and_groups() -> None:
    loss = total_loss(Net(), {"fc.weight": [2.0, "Rows"], "conv.weight": [0.5, "3D"]})
    assert loss.item() == pytest.approx(10 + 2 * 17 + 0.5 * 18)


def test_the_strength_scales_the_penalty() -> None:
    assert [total_loss(Net(), {"fc.weight": [s, "Rows"]}).item() for s in (0, 1, 2)] == pytest.approx([10, 27, 44])


def test_nothing_is_added_outside_the_window() -> None:
    assert total_loss(Net(), {"fc.weight": [1.0, "Rows"]}, epoch=2).item() == 10


def test_the_gradient_is_the_weight_over_its_groups_norm_and_zero_in_a_zero_group() -> None:
    net = Net()
    total_loss(net, {"fc.weight": [10.0, "Rows"]}).backward()
    assert net.fc.weight.grad is not None
    torch.testing.assert_close(net.fc.weight.grad, torch.tensor([[6.0, 8.0], [0.0, 10.0], [0.0, 0.0]]))


def test_channels_are_kept_off_zero_as_in_published_runs() -> None:
    penalty, _ = direct([0.0] * 8, "Channels")
    assert penalty == pytest.approx(2 * sqrt(1e-8))


@pytest.mark.parametrize("group", BY_HAND)
def test_the_gradient_of_a_weight_that_is_all_zero_is_finite(group: str) -> None:
    net = Net()
    with torch.no_grad():
        net.fc.weight.zero_()
        net.conv.weight.zero_()
    total_loss(net, {parameter_of(group): [1.0, group]}).backward()
    gradient = net.get_parameter(parameter_of(group)).grad
    assert gradient is not None
    assert gradient.count_nonzero() == 0


@given(eight, groups)
def test_the_penalty_is_never_negative_and_at_most_l1(values: list[float], group: str) -> None:
    penalty, _ = direct(values, group)
    channels_epsilon = 3e-4
    l1 = sum(map(abs, values)) * len(group.split("+"))
    assert 0 <= penalty <= l1 * (1 + 1e-5) + channels_epsilon


@given(eight, groups, st.floats(-8, 8, width=16))
def test_the_penalty_is_homogeneous_of_degree_one(values: list[float], group: str, scale: float) -> None:
    penalty, _ = direct(values, group)
    scaled, _ = direct([scale * value for value in values], group)
    assert scaled == pytest.approx(abs(scale) * penalty, rel=1e-4, abs=3e-3)


@given(eight, groups, st.floats(0, 50), st.floats(0, 50))
def test_a_greater_strength_keeps_no_more(values: list[float], group: str, one: float, other: float) -> None:
    (_, many), (_, few) = direct(values, group, min(one, other)), direct(values, group, max(one, other))
    assert not (few & ~many).any()


def test_without_a_criterion_no_group_is_dropped() -> None:
    assert run(Net(), schedule({"fc.weight": [4.0, "Rows"]})) == [{"fc.weight": MATRIX, "conv.weight": FILTERS}]


# Means of rows 3.5, 6, 0 and of columns 1, 16/3; of kernels 3.5, 0, 6, 2.5, filters 1.75, 4.25, channels 4.75, 1.25;
# of all 3. A group on the threshold goes.
@pytest.mark.parametrize(
    ("group", "strength", "kept"),
    [
        ("Rows", 3.0, [[3, 4], [0, 12], [0, 0]]),
        ("Rows", 3.5, [[0, 0], [0, 12], [0, 0]]),
        ("Cols", 1.0, [[0, 4], [0, 12], [0, 0]]),
        ("Cols", 5.4, [[0, 0], [0, 0], [0, 0]]),
        ("Rows+Cols", 3.5, [[0, 0], [0, 12], [0, 0]]),
        ("Cols+Rows", 1.0, [[0, 4], [0, 12], [0, 0]]),
        ("2D", 2.5, [[[[3, 4]], [[0, 0]]], [[[12, 0]], [[0, 0]]]]),
        ("3D", 2.0, [[[[0, 0]], [[0, 0]]], [[[12, 0]], [[0, 5]]]]),
        ("Filters", 1.0, FILTERS),
        ("Channels", 2.0, [[[[3, 4]], [[0, 0]]], [[[12, 0]], [[0, 0]]]]),
        ("4D", 2.5, FILTERS),
        ("4D", 3.0, [[[[0, 0]], [[0, 0]]], [[[0, 0]], [[0, 0]]]]),
        ("Channels+4D", 2.0, [[[[3, 4]], [[0, 0]]], [[[12, 0]], [[0, 0]]]]),
        ("4D+Channels", 3.0, [[[[0, 0]], [[0, 0]]], [[[0, 0]], [[0, 0]]]]),
    ],
)
def test_mean_abs_drops_groups_whose_mean_is_at_most_the_strength(group: str, strength: float, kept: Any) -> None:
    assert dropped(group, strength, "Mean_Abs") == kept


@pytest.mark.parametrize(
    ("group", "strength", "kept"),
    [
        ("Rows", 3.5, [[3, 4], [0, 12], [0, 0]]),
        ("Rows", 4.0, [[0, 0], [0, 12], [0, 0]]),
        ("Cols", 3.0, [[0, 4], [0, 12], [0, 0]]),
        ("Rows+Cols", 4.0, [[0, 0], [0, 12], [0, 0]]),
        ("2D", 4.5, [[[[0, 0]], [[0, 0]]], [[[12, 0]], [[0, 5]]]]),
        ("3D", 4.0, [[[[0, 0]], [[0, 0]]], [[[12, 0]], [[0, 5]]]]),
        ("Channels", 5.0, [[[[3, 4]], [[0, 0]]], [[[12, 0]], [[0, 0]]]]),
        ("4D", 11.0, FILTERS),
        ("4D", 12.0, [[[[0, 0]], [[0, 0]]], [[[0, 0]], [[0, 0]]]]),
    ],
)
def test_max_drops_groups_whose_largest_magnitude_is_at_most_the_strength(
    group: str, strength: float, kept: Any
) -> None:
    assert dropped(group, strength, "Max") == kept


def test_dropped_groups_may_come_back_and_with_keep_mask_may_not() -> None:
    def outcome(keep_mask: bool) -> Any:
        net = Net()

        def step() -> None:
            with torch.no_grad():
                net.fc.weight += 1

        data = schedule({"fc.weight": [3.0, "Rows"]}, {"keep_mask": keep_mask}, threshold_criteria="Max")
        return [weights["fc.weight"] for weights in run(net, data, step, epochs=3)]

    active = [[[4, 5], [1, 13], [0, 0]], [[5, 6], [2, 14], [0, 0]]]
    assert outcome(False) == [*active, [[6, 7], [3, 15], [1, 1]]]
    assert outcome(True) == [*active, [[6, 7], [3, 15], [0, 0]]]


def test_the_trace_names_the_penalty_and_what_was_dropped(tmp_path: Path) -> None:
    data = schedule({"fc.weight": [3.5, "Rows"]}, threshold_criteria="Mean_Abs")
    scheduler = attach(Net(), data, Trace(tmp_path, level="debug", logger=None))
    for _ in scheduler.epochs(1):
        for _ in scheduler.minibatches([None]):
            scheduler.total_loss(torch.zeros(()))
    lines = list(read(tmp_path))
    assert [line["means"] for line in lines if line["event"] == "loss terms"] == [{"gl": pytest.approx(3.5 * 17)}]
    (zeroed,) = [line for line in lines if line["event"] == "weights zeroed"]
    assert zeroed["sparsity"] == {"fc.weight": pytest.approx([3 / 6, 5 / 6])}
    assert (zeroed["level"], zeroed["hook"], zeroed["epoch"]) == ("info", "on_minibatch_end", 0)


def test_what_does_not_fit_is_refused_at_load_with_its_position(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"

    def problems(regims: str, **more: str) -> list[str]:
        keys = "".join(f"\n    {key}: {value}" for key, value in more.items())
        component = f"regularizers:\n  gl:\n    class: GroupLassoRegularizer\n    reg_regims:\n{regims}{keys}"
        policies = "policies:\n  - regularizer: {instance_name: gl}\n    epochs: [0]\n"
        path.write_text(f"version: 1\n{component}\n{policies}")
        with pytest.raises(ScheduleError) as caught:
            CompressionScheduler.from_yaml(path, Net(), trace=Trace(logger=None))
        return [f"{p.position.line}:{p.position.column} {p.path}: {p.message}" for p in caught.value.problems]

    matrix, convolution = "'Rows', 'Cols', 'Rows+Cols', 'Cols+Rows'", "'2D', '3D', 'Filters', '4D', 'Channels'"
    names = f"{convolution}, {matrix}, 'Channels+4D' or '4D+Channels'"
    where = "regularizers.gl.reg_regims"
    assert problems("      fc.weight: [0.1, rows]\n      conv.weight: [-1, 3D]", threshold_criteria="Mean") == [
        f"6:24 {where}.fc.weight[1]: must be {names}, got 'rows'",
        f"7:21 {where}.conv.weight[0]: must be greater than or equal to 0, got -1",
        "8:25 regularizers.gl.threshold_criteria: must be 'Mean_Abs' or 'Max', got 'Mean'",
    ]
    assert problems("      fc.*: [0.1, 3D]\n      conv.weight: [0.1, Rows]") == [
        f"6:13 {where}.fc.*: 'fc.weight' has shape [3, 2] and no groups '3D'; it has {matrix}",
        f"6:13 {where}.fc.*: 'fc.bias' has shape [3] and no groups '3D'; a vector has no groups at all",
        f"7:20 {where}.conv.weight: 'conv.weight' has shape [2, 2, 1, 2] and no groups 'Rows'; "
        f"it has {convolution}, 'Channels+4D', '4D+Channels'",
    ]
    assert problems("      {}") == [f"6:7 {where}: selects nothing: name at least one parameter, or '*'"]


def test_the_constructor_itself_refuses_an_unknown_group() -> None:
    with pytest.raises(ArgumentError, match=r"^reg_regims\.w\[1\]: must be one of '2D', .*'4D\+Channels', got '5D'$"):
        GroupLassoRegularizer({"w": (0.1, "5D")})  # type: ignore[dict-item]


# The gradient is made together with the penalty


def by_definition(weight: Tensor, group: str) -> Tensor:
    """Σ_g ||w_g||₂ in plain torch, in 64 bits."""
    inside = {"2D": (2, 3), "3D": (1, 2, 3), "Filters": (1, 2, 3), "4D": (0, 1, 2, 3), "Rows": (1,), "Cols": (0,)}
    terms = []
    for name in group.split("+"):
        if name == "Channels":
            terms.append((weight.double().square().sum((0, 2, 3)) + 1e-8).sqrt().sum())
        else:
            terms.append(torch.linalg.vector_norm(weight.double(), 2, inside[name]).sum())
    return torch.stack(terms).sum()


def both_penalties(weight: Tensor, group: str) -> tuple[Tensor, Tensor]:
    """Ours and the definition's, of strength 0.5."""
    regularizer = GroupLassoRegularizer({"w": (0.5, group)})  # type: ignore[dict-item]
    context = Context(nn.Identity(), {}, Progress(0), Window(0, 1), {"w": (0.5, group)}, {})
    return regularizer.penalty({"w": weight}, context), 0.5 * by_definition(weight, group)  # type: ignore[dict-item]


SHAPES = {"large": (600, 30, 3, 3), "kernels of one weight": (40, 50, 1, 1), "one filter": (1, 5, 2, 3)}
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "float32": lambda weight: weight,
    "float64": lambda weight: weight.double(),
    "bfloat16": lambda weight: weight.bfloat16(),
    "float16": lambda weight: weight.half(),
    "channels last": lambda weight: weight.to(memory_format=torch.channels_last) if weight.dim() == 4 else weight.t(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", get_args(GroupType))
def test_penalty_and_gradient_are_those_of_the_definition(group: str, shape: str, form: str) -> None:
    torch.manual_seed(0)
    size = SHAPES[shape][:2] if parameter_of(group) == "fc.weight" else SHAPES[shape]
    values = torch.randn(size)
    values[0] = 0  # a group of zeros, in most shapes
    weight = FORMS[form](values).detach().requires_grad_()
    ours, definition = both_penalties(weight, group)
    (gradient,) = torch.autograd.grad(ours, weight)
    (expected,) = torch.autograd.grad(definition, weight)
    tolerance = {"bfloat16": 1e-2, "float16": 1e-3}.get(form, 1e-6)
    torch.testing.assert_close(ours.double(), definition, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=tolerance, atol=tolerance)
    assert gradient.dtype == weight.dtype
    assert shape != "large" or gradient.stride() == weight.stride()


@pytest.mark.parametrize("factor", [0.25, 65536.0, -1.0])
@pytest.mark.parametrize("group", ["3D", "Channels", "2D"])
def test_what_the_loss_is_multiplied_by_multiplies_the_gradient(group: str, factor: float) -> None:
    net = Net()
    (factor * total_loss(net, {"conv.weight": [1.0, group]})).backward()
    assert net.conv.weight.grad is not None
    (expected,) = torch.autograd.grad(factor * by_definition(net.conv.weight, group), net.conv.weight)
    torch.testing.assert_close(net.conv.weight.grad, expected)


@pytest.mark.parametrize("group", BY_HAND)
def test_a_graph_that_is_retained_can_be_gone_through_again(group: str) -> None:
    weight = Net().get_parameter(parameter_of(group))
    ours, _ = both_penalties(weight, group)
    gradients = [torch.autograd.grad(ours, weight, retain_graph=True)[0] for _ in range(3)]
    torch.testing.assert_close(gradients[1:], gradients[:1] * 2)
    gradients[0].zero_()
    assert gradients[1].any(), "each has memory of its own"


def test_a_gradient_that_somebody_holds_is_not_written_to_later() -> None:
    weight = Net().conv.weight
    (first,) = torch.autograd.grad(both_penalties(weight, "3D")[0], weight)
    held = first.clone()
    with torch.no_grad():
        weight.mul_(-2).add_(1)
    torch.autograd.grad(both_penalties(weight, "3D")[0] * 3, weight)
    assert torch.equal(first, held)


@pytest.mark.parametrize("group", BY_HAND)
def test_the_gradient_can_be_differentiated_further(group: str) -> None:
    torch.manual_seed(0)
    shape = (4, 2) if parameter_of(group) == "fc.weight" else (2, 2, 1, 2)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(shape, dtype=torch.float64)
    products = []
    for penalty in both_penalties(weight, group):
        (gradient,) = torch.autograd.grad(penalty, weight, create_graph=True)
        products.append(torch.autograd.grad((gradient * direction).sum(), weight)[0])
    torch.testing.assert_close(*products)


def test_without_gradients_the_penalty_is_the_same() -> None:
    weight = Net().conv.weight
    with torch.no_grad():
        penalty, definition = both_penalties(weight, "3D")
    assert (penalty.item(), penalty.requires_grad) == (pytest.approx(definition.item()), False)


def test_a_frozen_weight_counts_and_gets_no_gradient() -> None:
    net = Net()
    net.fc.weight.requires_grad_(False)
    loss = total_loss(net, {"fc.weight": [1.0, "Rows"], "conv.weight": [1.0, "3D"]})
    loss.backward()
    assert (loss.item(), net.fc.weight.grad) == (pytest.approx(10 + 17 + 18), None)
    assert net.conv.weight.grad is not None


# The laws of every component


@pytest.mark.parametrize("criteria", [None, "Mean_Abs"])
def test_it_keeps_the_laws(criteria):
    regimes = {"conv1.weight": [0.05, "Channels"], "conv2.weight": [0.05, "3D"], "fc1.weight": [0.02, "Rows+Cols"]}
    check_component(GroupLassoRegularizer, reg_regims=regimes, threshold_criteria=criteria)


def test_outputs_and_inputs_of_a_transposed_convolution_are_refused_by_these_names() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(2, 3, 2))
    with pytest.raises(ScheduleError) as caught:
        CompressionScheduler.from_dict(schedule({"0.weight": [0.5, "Channels+4D"]}), net)
    (problem,) = caught.value.problems
    what = "its dimension 0 is inputs, and 'Channels+4D' takes it for outputs"
    assert problem.message == f"'0.weight' belongs to a ConvTranspose2d: {what}"
    CompressionScheduler.from_dict(schedule({"0.weight": [0.5, "2D"]}), net)
