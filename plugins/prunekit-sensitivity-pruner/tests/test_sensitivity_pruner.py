"""Sensitivity pruning: the threshold, its memory across epochs and resumes, and what is skipped or refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_sensitivity_pruner import SensitivityPruner
from structlog.testing import capture_logs
from torch import nn

from prunekit import CompressionScheduler, Progress, ScheduleError, Window
from prunekit.components import Context
from prunekit.testing import check_component, weights_model

# Mean 0, sum of squares 36, divisor n - 1 = 4: a standard deviation of exactly 3 (with n in the divisor, 2.68…).
SIGMA_3 = [5.0, -3.0, -1.0, -1.0, 0.0]


def scheduler(
    net: nn.Module, sensitivities: Any, optimizer: torch.optim.Optimizer | None = None, **window: Any
) -> CompressionScheduler:
    schedule = {
        "version": 1,
        "pruners": {"sensitivity": {"class": "SensitivityPruner", "sensitivities": sensitivities}},
        "policies": [
            {"pruner": {"instance_name": "sensitivity"}, **(window or {"starting_epoch": 0, "ending_epoch": 8})}
        ],
    }
    return CompressionScheduler.from_dict(schedule, net, optimizer)


def pruned_by(sensitivities: dict[str, float], net: nn.Module) -> dict[str, list[int]]:
    """The indices that the first epoch prunes, by parameter."""
    run = scheduler(net, sensitivities)
    run.on_epoch_begin(0)
    return {name: (~mask).flatten().nonzero().flatten().tolist() for name, mask in run.masks.items()}


def sigmas(run: CompressionScheduler) -> dict[str, float]:
    return dict(run.state_dict()["components"]["pruners.sensitivity"]["sigmas"])


# The threshold


@pytest.mark.parametrize(("sensitivity", "gone"), [(0, [4]), (0.25, [4]), (0.5, [2, 3, 4]), (1, [1, 2, 3, 4])])
def test_weights_at_or_below_the_sensitivity_times_the_standard_deviation_go(sensitivity, gone):
    # The thresholds are 0, 0.75, 1.5 and 3: at 1, the -3 goes since the deviation is the unbiased one.
    assert pruned_by({"fc1.weight": sensitivity}, weights_model(fc1=SIGMA_3)) == {"fc1.weight": gone}


def test_the_mask_has_the_shape_of_the_parameter_and_is_in_the_weights():
    net = weights_model(fc1=[[5.0, -3.0], [-1.0, -1.0], [0.0, 0.0]])  # sigma is 6 / sqrt(5) = 2.68…
    run = scheduler(net, {"fc1.weight": 0.5})
    run.on_epoch_begin(0)
    assert net.fc1.weight.tolist() == [[5, -3], [0, 0], [0, 0]]
    assert run.masks["fc1.weight"].tolist() == [[True, True], [False, False], [False, False]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_standard_deviation_is_not_rounded_to_the_type_of_the_weights(dtype):
    net = weights_model(fc1=torch.tensor(SIGMA_3 * 400 + [2.0], dtype=dtype))
    run = scheduler(net, {"fc1.weight": 1})
    run.on_epoch_begin(0)
    exact = float(torch.tensor(SIGMA_3 * 400 + [2.0], dtype=torch.float64).std())  # 2.6835…: 2.6875 in bfloat16
    assert sigmas(run) == {"fc1.weight": pytest.approx(exact, rel=1e-6)}
    assert run.masks["fc1.weight"].tolist() == [True, True, False, False, False] * 400 + [False]
    assert net.fc1.weight.dtype == dtype


# Which parameters


def test_each_tensor_has_its_sensitivity_and_its_own_standard_deviation():
    net = weights_model(fc1=SIGMA_3, fc2=[10 * value for value in SIGMA_3])
    run = scheduler(net, {"fc1.weight": 0.5, "fc2.weight": 0.25})
    run.on_epoch_begin(0)
    assert (net.fc1.weight.tolist(), net.fc2.weight.tolist()) == ([5, -3, 0, 0, 0], [50, -30, -10, -10, 0])
    assert sigmas(run) == {"fc1.weight": 3, "fc2.weight": 30}


def test_the_star_is_every_parameter_that_nothing_else_selects_wherever_it_stands():
    net = weights_model(fc1=SIGMA_3, fc2=SIGMA_3, conv=SIGMA_3)
    assert pruned_by({"*": 1, "fc1.weight": 0.25, "fc?.weight": 0.5}, net) == {
        "fc1.weight": [4],
        "fc2.weight": [2, 3, 4],
        "conv.weight": [1, 2, 3, 4],
    }


def test_a_parameter_that_nothing_selects_is_left_alone():
    net = weights_model(fc1=SIGMA_3, fc2=SIGMA_3)
    assert pruned_by({"fc2.weight": 0.25}, net) == {"fc2.weight": [4]}


# The memory


def test_pruning_again_changes_nothing():
    net = weights_model(fc1=SIGMA_3)
    run = scheduler(net, {"fc1.weight": 0.5})
    seen = []
    for epoch in (0, 1):
        run.on_epoch_begin(epoch)
        seen.append((run.masks["fc1.weight"].tolist(), net.fc1.weight.tolist()))
    assert seen == [([True, True, False, False, False], [5, -3, 0, 0, 0])] * 2


def test_the_threshold_of_the_first_pruning_stays_and_catches_weights_that_shrink_later():
    net = weights_model(fc1=SIGMA_3)
    run = scheduler(net, {"fc1.weight": 0.5})
    run.on_epoch_begin(0)
    with torch.no_grad():
        net.fc1.weight.mul_(0.4)  # 2.0 and -1.2; the deviation is now a third of what it was
    run.on_epoch_begin(1)
    assert net.fc1.weight.tolist() == [2, 0, 0, 0, 0]
    assert sigmas(run) == {"fc1.weight": 3}


def test_the_standard_deviation_is_measured_at_the_first_active_epoch_not_before():
    net = weights_model(fc1=[20 * value for value in SIGMA_3])
    run = scheduler(net, {"fc1.weight": 0.5}, epochs=[2, 3])
    run.on_epoch_begin(0)
    assert sigmas(run) == {}
    with torch.no_grad():
        net.fc1.weight.copy_(torch.tensor(SIGMA_3))
    run.on_epoch_begin(2)
    assert sigmas(run) == {"fc1.weight": 3}


def mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, run: CompressionScheduler, end: int) -> None:
    batches = [(torch.linspace(-1, 1, 48).reshape(4, 12) ** power, torch.arange(4)) for power in (1, 2)]
    for _ in run.epochs(end):
        for inputs, targets in run.minibatches(batches):
            optimizer.zero_grad()
            run.total_loss(nn.functional.cross_entropy(net(inputs), targets)).backward()
            optimizer.step()


def result(net: nn.Module, run: CompressionScheduler) -> dict[str, Any]:
    masks = {name: mask.tolist() for name, mask in run.masks.items()}
    return {"masks": masks, "weights": {name: weight.tolist() for name, weight in net.state_dict().items()}}


@pytest.mark.parametrize("forget", [False, True])
def test_a_run_resumed_halfway_equals_the_straight_one_because_it_remembers(tmp_path: Path, forget: bool):
    def start() -> tuple[nn.Module, torch.optim.Optimizer, CompressionScheduler]:
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.05)
        return net, optimizer, scheduler(net, {"0.weight": 0.6, "2.weight": 0.8}, optimizer)

    straight, optimizer, run = start()
    train(straight, optimizer, run, 4)
    torch.save([straight.state_dict(), optimizer.state_dict(), run.state_dict()], tmp_path / "state")
    train(straight, optimizer, run, 8)

    resumed, second_optimizer, second = start()
    weights, momenta, state = torch.load(tmp_path / "state", weights_only=True)
    resumed.load_state_dict(weights)
    second_optimizer.load_state_dict(momenta)
    if forget:  # what a library does that saves masks and no statistics
        state["components"]["pruners.sensitivity"]["sigmas"].clear()
    second.load_state_dict(state)
    train(resumed, second_optimizer, second, 8)
    assert (result(resumed, second) == result(straight, run)) is not forget


def test_the_state_is_a_copy():
    pruner = SensitivityPruner({"*": 0.5})
    state = {"sigmas": {"fc1.weight": 3.0}}
    pruner.load_state_dict(state)
    state["sigmas"].clear()
    pruner.state_dict()["sigmas"].clear()
    assert pruner.state_dict() == {"sigmas": {"fc1.weight": 3.0}}


# What is skipped


@pytest.mark.parametrize(
    ("values", "sigma"),
    [
        ([7.0], math.nan),
        ([], math.nan),
        ([2.0, 2.0, 2.0], 0.0),
        ([0.0, 0.0], 0.0),
        ([1.0, math.nan], math.nan),
        ([1.0, math.inf], math.nan),
    ],
)
def test_a_tensor_without_a_usable_standard_deviation_is_skipped_with_a_warning(values, sigma):
    net = weights_model(fc1=SIGMA_3, fc2=torch.tensor(values))
    with capture_logs() as lines:
        run = scheduler(net, {"*": 0.5})
        run.on_epoch_begin(0)
    assert list(run.masks) == ["fc1.weight"]
    assert torch.equal(net.fc2.weight.nan_to_num(), torch.tensor(values).nan_to_num())
    assert [line for line in lines if line["log_level"] == "warning"] == [
        {
            "event": "no standard deviation to prune by, skipped",
            "log_level": "warning",
            "parameter": "fc2.weight",
            "sigma": pytest.approx(sigma, nan_ok=True),
            "elements": len(values),
            "policy": "policies[0]",
            "component": "SensitivityPruner 'sensitivity'",
            "plugin": "prunekit-sensitivity-pruner",
            "version": "0.1.0",
            "epoch": 0,
        }
    ]


def test_what_was_skipped_is_measured_once_it_can_be():
    net = weights_model(fc1=[0.0, 0.0, 0.0, 0.0, 0.0])
    run = scheduler(net, {"fc1.weight": 0.5})
    run.on_epoch_begin(0)
    assert dict(run.masks) == {}
    with torch.no_grad():
        net.fc1.weight.copy_(torch.tensor(SIGMA_3))
    run.on_epoch_begin(1)
    assert net.fc1.weight.tolist() == [5, -3, 0, 0, 0]


# What is refused


@pytest.mark.parametrize(
    ("sensitivities", "path", "message"),
    [
        ({}, "sensitivities", "selects nothing: name at least one parameter, or '*'"),
        ({"fc1.weight": -0.1}, "sensitivities.fc1.weight", "must be greater than or equal to 0, got -0.1"),
        ({"fc1.weight": math.nan}, "sensitivities.fc1.weight", "must be"),
        ({"fc1.weight": math.inf}, "sensitivities.fc1.weight", "must be a finite number, got inf"),
        ({"fc1.weight": "0.1"}, "sensitivities.fc1.weight", "must be a valid number, got '0.1'"),
        ({"fc1.weight": True}, "sensitivities.fc1.weight", "must be a valid number, got True"),
        (["fc1.weight"], "sensitivities", "got ['fc1.weight']"),
        ({"fc9.weight": 0.5}, "sensitivities.fc9.weight", "'fc9.weight' selects nothing in the model"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(sensitivities, path, message):
    with pytest.raises(ScheduleError) as error:
        scheduler(weights_model(fc1=SIGMA_3), sensitivities)
    (problem,) = error.value.problems
    assert (problem.path, message in problem.message) == (f"pruners.sensitivity.{path}", True)


# For any weights


def mask_of(values: list[float], sensitivity: float) -> list[bool] | None:
    net = weights_model(fc1=values)
    context = Context(net, {}, Progress(0), Window(0, 1), {"fc1.weight": sensitivity}, {})
    masks = SensitivityPruner({"*": sensitivity}).compute_masks(dict(net.named_parameters()), context)
    return masks["fc1.weight"].tolist() if masks else None


@settings(deadline=None)  # the first call of torch is slow
@given(st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=40), st.floats(0, 3), st.sampled_from([0.25, 2.0]))
def test_no_kept_weight_is_smaller_than_a_pruned_one_and_the_scale_of_the_weights_does_not_matter(
    values, sensitivity, scale
):
    mask = mask_of(values, sensitivity)
    assert mask_of([scale * value for value in values], sensitivity) == mask
    assert (mask is None) == (len(set(values)) < 2)
    if mask is not None:
        kept = [abs(value) for value, keep in zip(values, mask, strict=True) if keep]
        gone = [abs(value) for value, keep in zip(values, mask, strict=True) if not keep]
        assert max(gone, default=-1.0) < min(kept, default=math.inf)


# The laws of every component


def test_it_keeps_the_laws():
    check_component(SensitivityPruner, sensitivities={"*.weight": 0.5})
