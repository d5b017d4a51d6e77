"""L1Regularizer: penalty, gradient, thresholding, and what a schedule may say of it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from prunekit_l1_regularizer import L1Regularizer
from torch import Tensor, nn

from prunekit import ComponentSpec, CompressionScheduler, PolicySpec, Progress, Schedule, ScheduleError, Trace, Window
from prunekit.components import Context, Selectors
from prunekit.testing import check_component
from prunekit.trace import read


class Net(nn.Module):
    """Two small weights, by eye: fc1 [2, 3] and fc2 [1, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 2), nn.Linear(2, 1)
        with torch.no_grad():
            self.fc1.weight.copy_(torch.tensor([[1.0, -2.0, 0.0], [0.5, -0.25, 0.1]]))
            self.fc2.weight.copy_(torch.tensor([[3.0, -0.5]]))


def schedule(args: Mapping[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    regularizer = {"class": "L1Regularizer", "reg_regims": {"fc1.weight": 0.25}, **keys}
    policy = {"regularizer": {"instance_name": "l1", "args": dict(args or {})}, "starting_epoch": 0, "ending_epoch": 2}
    return {"version": 1, "regularizers": {"l1": regularizer}, "policies": [policy]}


def attach(net: nn.Module, data: Mapping[str, Any], trace: Trace | None = None) -> CompressionScheduler:
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    return CompressionScheduler.from_dict(data, net, optimizer, trace=trace or Trace(logger=None))


def total_loss(data: Mapping[str, Any], net: nn.Module | None = None, epoch: int = 0) -> Tensor:
    scheduler = attach(net or Net(), data)
    scheduler.on_epoch_begin(epoch)
    scheduler.on_minibatch_begin(epoch, 0, 1)
    return scheduler.before_backward_pass(epoch, 0, 1, torch.tensor(10.0))


def run(net: nn.Module, data: Mapping[str, Any], step: Callable[[], None], epochs: int, minibatches: int = 1) -> Any:
    """Weights of fc1 after every mini-batch; `step` stands for the optimizer's."""
    scheduler, weights = attach(net, data), []
    for epoch in range(epochs):
        scheduler.on_epoch_begin(epoch)
        for minibatch in range(minibatches):
            scheduler.on_minibatch_begin(epoch, minibatch, minibatches)
            step()
            scheduler.on_minibatch_end(epoch, minibatch, minibatches)
            weights.append(net.fc1.weight.tolist())
        scheduler.on_epoch_end(epoch)
    return weights


def context(settings: Mapping[str, float]) -> Context:
    return Context(nn.Identity(), {}, Progress(0), Window(0, 1), settings, {})


def penalty(values: list[float], strength: float = 1.0) -> Tensor:
    regularizer = L1Regularizer({"w": strength})
    return regularizer.penalty({"w": nn.Parameter(torch.tensor(values))}, context({"w": strength}))


def problems(text: str, tmp_path: Path) -> list[str]:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ScheduleError) as caught:
        CompressionScheduler.from_yaml(path, Net(), trace=Trace(logger=None))
    return [f"{p.position.line}:{p.position.column} {p.path}: {p.message}" for p in caught.value.problems]


def test_the_penalty_is_the_strength_times_the_sum_of_magnitudes() -> None:
    # |fc1| sums to 3.85
    assert total_loss(schedule(reg_regims={"fc1.weight": 2.0})).item() == pytest.approx(10 + 2 * 3.85)


def test_each_parameter_has_its_own_strength() -> None:
    # |fc2| sums to 3.5
    regims = {"fc1.weight": 2.0, "fc2.weight": 0.5}
    assert total_loss(schedule(reg_regims=regims)).item() == pytest.approx(10 + 2 * 3.85 + 0.5 * 3.5)


def test_a_pattern_gives_its_strength_to_all_that_it_selects() -> None:
    assert total_loss(schedule(reg_regims={"*.weight": 2.0})).item() == pytest.approx(10 + 2 * (3.85 + 3.5))


def test_nothing_is_added_outside_the_window() -> None:
    assert total_loss(schedule(), epoch=2).item() == 10


def test_the_gradient_is_the_strength_times_the_sign_and_zero_at_zero() -> None:
    net = Net()
    total_loss(schedule(reg_regims={"fc1.weight": 2.0}), net).backward()
    assert net.fc1.weight.grad is not None
    assert net.fc1.weight.grad.tolist() == [[2, -2, 0], [2, -2, 2]]
    assert net.fc2.weight.grad is None


def test_the_gradient_scales_with_what_follows_the_penalty() -> None:
    net = Net()
    (3 * total_loss(schedule(reg_regims={"fc1.weight": 2.0}), net)).backward()
    assert net.fc1.weight.grad is not None
    assert net.fc1.weight.grad.tolist() == [[6, -6, 0], [6, -6, 6]]


def test_the_gradient_agrees_with_finite_differences() -> None:
    weights = {"a": nn.Parameter(torch.tensor([1.0, -2.0]).double()), "b": nn.Parameter(torch.tensor([[0.5]]).double())}
    regularizer, targets = L1Regularizer({"a": 0.3, "b": 2.0}), {"a": 0.3, "b": 2.0}

    def function(a: Tensor, b: Tensor) -> Tensor:
        return regularizer.penalty({"a": a, "b": b}, context(targets))  # type: ignore[dict-item]

    assert torch.autograd.gradcheck(function, tuple(weights.values()))


def test_parameters_of_several_types_are_penalised_together() -> None:
    weights = {"a": nn.Parameter(torch.tensor([1.0, -2.0]).double()), "b": nn.Parameter(torch.tensor([-4.0]))}
    total = L1Regularizer({"a": 1.0, "b": 2.0}).penalty(weights, context({"a": 1.0, "b": 2.0}))
    total.backward()
    assert total.item() == 11
    assert [(w.grad.dtype, w.grad.tolist()) for w in weights.values() if w.grad is not None] == [
        (torch.float64, [1, -1]),
        (torch.float32, [-2]),
    ]


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=8), st.floats(-8, 8, width=16))
def test_the_penalty_is_never_negative_and_homogeneous_of_degree_one(values: list[float], scale: float) -> None:
    scaled = penalty([scale * value for value in values]).item()
    assert scaled >= 0
    assert scaled == pytest.approx(abs(scale) * penalty(values).item(), rel=1e-4, abs=1e-6)


def test_without_a_criterion_no_weight_is_dropped() -> None:
    net = Net()
    before = net.fc1.weight.tolist()
    assert run(net, schedule(), lambda: None, epochs=1) == [before]


@pytest.mark.parametrize("criterion", ["Mean_Abs", "Max"])
def test_with_a_criterion_weights_of_at_most_the_strength_are_dropped_after_each_minibatch(criterion: str) -> None:
    dropped = [[1.0, -2.0, 0.0], [0.5, 0.0, 0.0]]
    data = schedule(threshold_criteria=criterion)
    assert run(Net(), data, lambda: None, epochs=1, minibatches=2) == [dropped, dropped]


def test_the_strength_is_the_threshold() -> None:
    data = schedule(reg_regims={"fc1.weight": 0.5}, threshold_criteria="Max")
    assert run(Net(), data, lambda: None, epochs=1) == [[[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]]]


def test_dropped_weights_may_come_back_and_with_keep_mask_may_not() -> None:
    def outcome(keep_mask: bool) -> Any:
        net = Net()

        def step() -> None:
            with torch.no_grad():
                net.fc1.weight += 1

        data = schedule({"keep_mask": keep_mask}, reg_regims={"fc1.weight": 1.0}, threshold_criteria="Max")
        return run(net, data, step, epochs=3)

    first, second = [[2.0, 0.0, 0.0], [1.5, 0.0, pytest.approx(1.1)]], [[3.0, 0.0, 0.0], [2.5, 0.0, pytest.approx(2.1)]]
    assert outcome(False) == [first, second, [[4.0, 1.0, 1.0], [3.5, 1.0, pytest.approx(3.1)]]]
    assert outcome(True) == [first, second, [[4.0, 0.0, 0.0], [3.5, 0.0, pytest.approx(3.1)]]]


class KeepFirstColumn:
    """A pruner for the test below."""

    def __init__(self, weights: Selectors = "fc1.weight") -> None: ...

    def compute_masks(self, parameters: Mapping[str, nn.Parameter], context: Context) -> Mapping[str, Tensor]:
        return {name: torch.arange(3).expand(weight.shape) == 0 for name, weight in parameters.items()}


def test_a_pruners_mask_stays_in_force_beside_a_thresholding_regularizer() -> None:
    net = Net()
    components = [
        ComponentSpec("pruner", "p", KeepFirstColumn),
        ComponentSpec(
            "regularizer", "r", "L1Regularizer", {"reg_regims": {"fc1.weight": 0.5}, "threshold_criteria": "Max"}
        ),
    ]
    policies = [PolicySpec("pruner", "p", Window(0, 1)), PolicySpec("regularizer", "r", Window(0, 1))]
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    scheduler = CompressionScheduler(Schedule(components, policies), net, optimizer, trace=Trace(logger=None))
    weights = []
    for _ in scheduler.epochs(2):
        for _ in scheduler.minibatches([None]):
            net.fc1.weight.grad = -torch.ones(2, 3)
            optimizer.step()
        weights.append(net.fc1.weight.tolist())
    assert weights == [[[2.0, 0.0, 0.0], [1.5, 0.0, 0.0]], [[3.0, 0.0, 0.0], [2.5, 0.0, 0.0]]]
    assert scheduler.masks["fc1.weight"].tolist() == [[True, False, False], [True, False, False]]


def test_the_trace_names_the_penalty_and_what_was_dropped(tmp_path: Path) -> None:
    net = Net()
    scheduler = attach(net, schedule(threshold_criteria="Max"), Trace(tmp_path, level="debug", logger=None))
    for _ in scheduler.epochs(2):
        for _ in scheduler.minibatches([None]):
            scheduler.total_loss(torch.zeros(()))
    lines = list(read(tmp_path))
    dropped = [line["sparsity"] for line in lines if line["event"] == "weights zeroed"]
    means = [line["means"] for line in lines if line["event"] == "loss terms"]
    assert dropped == [{"fc1.weight": [1 / 6, 0.5]}, {"fc1.weight": [0.5, 0.5]}]
    assert means == [{"l1": pytest.approx(0.25 * 3.85)}, {"l1": pytest.approx(0.25 * 3.5)}]


def test_what_does_not_fit_is_refused_at_load_with_its_position(tmp_path: Path) -> None:
    text = """\
version: 1
regularizers:
  negative:
    class: L1Regularizer
    reg_regims: {fc1.weight: -0.1}
  nobody:
    class: L1Regularizer
    reg_regims: {}
  misspelt:
    class: L1Regularizer
    reg_regims: {fc1.weigth: 0.1}
    threshold_criteria: Mean
policies:
  - regularizer: {instance_name: misspelt}
    epochs: [0]
"""
    assert problems(text, tmp_path) == [
        "5:30 regularizers.negative.reg_regims.fc1.weight: must be greater than or equal to 0, got -0.1",
        "8:17 regularizers.nobody.reg_regims: selects nothing: name at least one parameter, or '*'",
        "11:18 regularizers.misspelt.reg_regims.fc1.weigth: 'fc1.weigth' selects nothing in the model; "
        "nearest are 'fc1.weight', 'fc2.weight'",
        "12:25 regularizers.misspelt.threshold_criteria: must be 'Mean_Abs' or 'Max', got 'Mean'",
    ]
    assert problems(
        text.replace("Mean\n", "Max\n").replace("-0.1", "0.1").replace("{}", "{fc1.weight: 0}"), tmp_path
    ) == [
        "11:18 regularizers.misspelt.reg_regims.fc1.weigth: 'fc1.weigth' selects nothing in the model; "
        "nearest are 'fc1.weight', 'fc2.weight'"
    ]


# The laws of every component


@pytest.mark.parametrize("criteria", [None, "Max"])
def test_it_keeps_the_laws(criteria):
    check_component(L1Regularizer, reg_regims={"*.weight": 0.02}, threshold_criteria=criteria)
