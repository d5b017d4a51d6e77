"""Splicing: two thresholds, what lies between them, their memory across epochs and resumes, and what is refused."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_splicing_pruner import SplicingPruner, statistics_of
from structlog.testing import capture_logs
from torch import Tensor, nn

from prunekit import CompressionScheduler, Progress, Schedule, ScheduleError, Window
from prunekit.components import Context
from prunekit.testing import check_component, weights_model

# Magnitudes 5, 1, 1, 1: the mean is 2, the squared distances are 9 + 1 + 1 + 1 = 12, and 12 / (4 - 1) is 2².
WEIGHTS = [5.0, -1.0, 1.0, -1.0]
# With s = 0.5 the thresholds are 0.5 · (2 + 0.5 · 2) = 1.5 and 1.5 · 3 = 4.5.
KEYS: dict[str, Any] = {"sensitivities": {"fc1.weight": 0.5}, "low_thresh_mult": 0.5, "hi_thresh_mult": 1.5}
UNMASKED = {"mask_on_forward_only": True, "use_double_copies": True}


def scheduler(
    net: nn.Module, args: Any = UNMASKED, optimizer: torch.optim.Optimizer | None = None, **keys: Any
) -> CompressionScheduler:
    window = {"starting_epoch": 0, "ending_epoch": 9}
    policy = {"pruner": {"instance_name": "surgeon", "args": args}, **window}
    pruner = {"class": "SplicingPruner", **KEYS, **keys}
    schedule = {"version": 1, "pruners": {"surgeon": pruner}, "policies": [policy]}
    return CompressionScheduler.from_dict(schedule, net, optimizer)


def masks_over(moves: list[list[float]], **keys: Any) -> list[list[bool]]:
    """The mask of each epoch, when training has moved the weights to these values before it."""
    net = weights_model(fc1=moves[0])
    run, seen = scheduler(net, **keys), []
    for epoch, values in enumerate(moves):
        with torch.no_grad():
            net.fc1.weight.copy_(torch.tensor(values))
        run.on_epoch_begin(epoch)
        seen.append(run.masks["fc1.weight"].tolist())
    return seen


def thresholds_of(run: CompressionScheduler) -> dict[str, list[float]]:
    return dict(run.state_dict()["components"]["pruners.surgeon"]["statistics"])


# The thresholds


def test_at_first_what_is_below_the_lower_threshold_is_cut():
    assert masks_over([WEIGHTS]) == [[True, False, False, False]]


def test_between_the_thresholds_everything_stays_what_it_was():
    moved = [1.5, 4.49, -4.5, 1.49]  # kept and in between; cut and in between; cut and grown; cut and small
    assert masks_over([WEIGHTS, moved]) == [[True, False, False, False], [True, False, True, False]]


def test_a_weight_is_cut_again_when_it_shrinks_below_the_lower_threshold():
    moves = [WEIGHTS, [5.0, 6.0, 1.0, 1.0], [5.0, -1.4, 1.0, 1.0], [5.0, 4.0, 1.0, 1.0]]
    assert [mask[1] for mask in masks_over(moves)] == [False, True, False, False]


@pytest.mark.parametrize(
    ("keys", "second"),
    [
        ({}, [True, False, False, False]),
        ({"sensitivities": {"fc1.weight": 0.0}}, [True, True, False, False]),  # 1 and 3
        ({"sensitivities": {"fc1.weight": 2.0}}, [False, False, False, False]),  # 3 and 9
        ({"low_thresh_mult": 1.0}, [False, False, False, False]),  # 3 and 4.5
        ({"hi_thresh_mult": 1.0}, [True, True, False, False]),  # 1.5 and 3
        ({"sensitivity_multiplier": 2.0}, [False, False, False, False]),  # s = 0.5 · (1 + 2): 2.5 and 7.5
    ],
)
def test_every_key_moves_a_threshold(keys, second):
    assert masks_over([WEIGHTS, [2.0, 4.0, 0.5, 0.5]], **keys)[1] == second


def test_the_sensitivity_grows_with_every_epoch_of_the_window():
    # s = 0.5 · (1 + epoch / 4), so the lower threshold is 1.5, 1.625, 1.75, 1.875.
    masks = masks_over([WEIGHTS, *[[1.7, 1.0, 1.0, 1.0]] * 3], sensitivity_multiplier=0.25)
    assert [mask[0] for mask in masks] == [True, True, False, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_statistics_are_not_rounded_to_the_type_of_the_weights(dtype):
    values = torch.tensor([*WEIGHTS * 400, 3.0], dtype=dtype)
    exact = torch.tensor([*WEIGHTS * 400, 3.0], dtype=torch.float64).abs()
    assert statistics_of(values) == pytest.approx((float(exact.mean()), float(exact.std())), rel=1e-6)


# Which parameters


def test_each_tensor_has_its_sensitivity_and_its_own_statistics():
    net = weights_model(fc1=WEIGHTS, fc2=[10 * value for value in WEIGHTS], fc3=WEIGHTS)
    run = scheduler(net, sensitivities={"fc1.weight": 0.5, "fc2.weight": 0.5})
    run.on_epoch_begin(0)
    assert thresholds_of(run) == {"fc1.weight": [2, 2], "fc2.weight": [20, 20]}
    assert {name: mask.tolist() for name, mask in run.masks.items()} == {
        "fc1.weight": [True, False, False, False],
        "fc2.weight": [True, False, False, False],
    }


def test_the_star_is_every_parameter_that_nothing_else_selects():
    net = weights_model(fc1=WEIGHTS, fc2=WEIGHTS)
    run = scheduler(net, sensitivities={"*": 3.0, "fc1.weight": 0.5}, low_thresh_mult=1.0)  # fc2: 2 + 3 · 2 = 8
    run.on_epoch_begin(0)
    assert [run.masks[name].tolist()[0] for name in ("fc1.weight", "fc2.weight")] == [True, False]


# The memory


def test_the_thresholds_of_the_first_pruning_stay():
    net = weights_model(fc1=WEIGHTS)
    run = scheduler(net)
    run.on_epoch_begin(0)
    with torch.no_grad():
        net.fc1.weight.mul_(0.4)  # 2.0 is above 1.5, and would be above the threshold of these weights
    run.on_epoch_begin(1)
    assert thresholds_of(run) == {"fc1.weight": [2, 2]}
    assert run.masks["fc1.weight"].tolist() == [True, False, False, False]


def test_enforced_masks_leave_nothing_to_splice():
    net = weights_model(fc1=WEIGHTS)
    run = scheduler(net, args={})
    for epoch in range(2):
        run.on_epoch_begin(epoch)
        run.on_minibatch_begin(epoch, 0, 1)
        with torch.no_grad():
            net.fc1.weight += 4  # what a step may do
        run.on_minibatch_end(epoch, 0, 1)
    assert net.fc1.weight.tolist() == [13, 0, 0, 0]


def mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, run: CompressionScheduler, end: int) -> list[Tensor]:
    batches = [(torch.linspace(-1, 1, 48).reshape(4, 12) ** power, torch.arange(4)) for power in (1, 2)]
    masks = []
    for _ in run.epochs(end):
        for inputs, targets in run.minibatches(batches):
            optimizer.zero_grad()
            run.total_loss(nn.functional.cross_entropy(net(inputs), targets)).backward()
            optimizer.step()
        masks.append(run.masks["0.weight"].clone())
    return masks


@pytest.mark.parametrize("forget", [False, True])
def test_a_run_resumed_halfway_equals_the_straight_one_because_it_remembers(tmp_path: Path, forget: bool):
    def start() -> tuple[nn.Module, torch.optim.Optimizer, CompressionScheduler]:
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
        keys = {"sensitivities": {"*.weight": 0.3}, "low_thresh_mult": 0.9, "hi_thresh_mult": 1.0}
        return net, optimizer, scheduler(net, UNMASKED, optimizer, **keys)

    straight, optimizer, run = start()
    train(straight, optimizer, run, 4)
    torch.save([straight.state_dict(), optimizer.state_dict(), run.state_dict()], tmp_path / "state")
    expected = train(straight, optimizer, run, 8)
    back = [bool((later & ~earlier).any()) for earlier, later in pairwise(expected)]
    assert any(back), "weights come back in this run"

    resumed, second_optimizer, second = start()
    weights, momenta, state = torch.load(tmp_path / "state", weights_only=True)
    resumed.load_state_dict(weights)
    second_optimizer.load_state_dict(momenta)
    if forget:  # what a library does that saves masks and no statistics
        state["components"]["pruners.surgeon"]["statistics"].clear()
    second.load_state_dict(state)
    masks = train(resumed, second_optimizer, second, 8)
    same = all(map(torch.equal, masks, expected)) and torch.equal(resumed[0].weight, straight[0].weight)
    assert same is not forget


# What is skipped


@pytest.mark.parametrize("values", [[7.0], [2.0, -2.0, 2.0], [0.0, 0.0], [1.0, math.nan], [1.0, math.inf]])
def test_a_tensor_without_usable_statistics_is_skipped_with_a_warning(values):
    net = weights_model(fc1=WEIGHTS, fc2=values)
    with capture_logs() as lines:
        run = scheduler(net, sensitivities={"*": 0.5})
        run.on_epoch_begin(0)
    assert list(run.masks) == ["fc1.weight"]
    (warning,) = [line for line in lines if line["log_level"] == "warning"]
    assert warning["event"] == "magnitudes that do not differ, nothing to prune by, skipped"
    assert (warning["parameter"], warning["elements"], warning["epoch"]) == ("fc2.weight", len(values), 0)
    assert not 0 < warning["deviation"] < math.inf


def test_what_was_skipped_is_measured_once_it_can_be():
    assert [len(mask) for mask in masks_over([WEIGHTS])] == [4]
    net = weights_model(fc1=[0.0] * 4)
    run = scheduler(net)
    run.on_epoch_begin(0)
    assert dict(run.masks) == {}
    with torch.no_grad():
        net.fc1.weight.copy_(torch.tensor(WEIGHTS))
    run.on_epoch_begin(1)
    assert run.masks["fc1.weight"].tolist() == [True, False, False, False]


# What is refused


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        ({"sensitivities": {}}, "sensitivities", "selects nothing: name at least one parameter, or '*'"),
        ({"sensitivities": {"fc1.weight": -1}}, "sensitivities.fc1.weight", "must be greater than or equal to 0"),
        ({"sensitivities": {"fc9.weight": 1}}, "sensitivities.fc9.weight", "'fc9.weight' selects nothing in the model"),
        ({"low_thresh_mult": -1}, "low_thresh_mult", "must be greater than or equal to 0, got -1"),
        ({"hi_thresh_mult": math.inf}, "hi_thresh_mult", "must be a finite number, got inf"),
        ({"hi_thresh_mult": 0.4}, "hi_thresh_mult", "must not be below low_thresh_mult 0.5, got 0.4"),
        ({"sensitivity_multiplier": -1}, "sensitivity_multiplier", "must be greater than or equal to 0, got -1"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(keys, path, message):
    with pytest.raises(ScheduleError) as error:
        scheduler(weights_model(fc1=WEIGHTS), **keys)
    (problem,) = error.value.problems
    assert (problem.path, message in problem.message) == (f"pruners.surgeon.{path}", True)


# For any weights

numbers = st.lists(st.integers(-20, 20).map(float), min_size=2, max_size=30)


def chosen(values: list[float], masks: dict[str, Tensor], low: float, hi: float, s: float, epoch: int = 0) -> Any:
    net = weights_model(w=values)
    pruner = SplicingPruner(sensitivities={"*": s}, low_thresh_mult=low, hi_thresh_mult=hi)
    context = Context(net, masks, Progress(epoch), Window(0, 9), {"w.weight": s}, {})
    return pruner.compute_masks(dict(net.named_parameters()), context).get("w.weight")


@settings(deadline=None)
@given(numbers, st.floats(0, 2), st.floats(0, 2), st.floats(0, 3), st.randoms(use_true_random=False))
def test_equation_3_of_the_paper_holds_for_every_weight(values, one, other, s, random):
    low, hi = sorted((one, other))
    before = torch.tensor([random.random() < 0.5 for _ in values])
    mask = chosen(values, {"w.weight": before}, low, hi, s)
    magnitudes = torch.tensor(values).abs()
    if magnitudes.std() == 0:
        assert mask is None
        return
    middle = float(magnitudes.mean()) + s * float(magnitudes.std())
    for kept, was, magnitude in zip(mask.tolist(), before.tolist(), magnitudes.tolist(), strict=True):
        if magnitude < low * middle - 1e-4:
            assert not kept
        elif magnitude > hi * middle + 1e-4:
            assert kept
        elif low * middle + 1e-4 < magnitude < hi * middle - 1e-4:
            assert kept == was


@settings(deadline=None)
@given(numbers, st.floats(0, 2), st.floats(0, 2), st.floats(0, 3))
def test_asked_again_it_chooses_the_same_and_the_order_of_the_weights_does_not_matter(values, one, other, s):
    low, hi = sorted((one, other))
    mask = chosen(values, {}, low, hi, s)
    if mask is None:
        return
    assert torch.equal(chosen(values, {"w.weight": mask}, low, hi, s), mask)
    turned = chosen(values[::-1], {}, low, hi, s)
    middle = statistics_of(torch.tensor(values))
    near = min(abs(abs(v) - m * (middle.mean + s * middle.deviation)) for v in values for m in (low, hi))
    assert near < 1e-4 or torch.equal(turned, mask.flip(0))


# The card


def test_the_schedule_of_the_card_cuts_what_the_card_says():
    card = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (schedule, *_) = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    assert "cuts about 59 %, at\ns = 0.5 about 68 %" in card
    torch.manual_seed(0)
    net = weights_model(fc1=torch.randn(100, 200), fc2=torch.randn(100, 200))
    run = CompressionScheduler(Schedule.from_text(schedule), net)
    for epoch in range(6):
        run.on_epoch_begin(epoch)
        for minibatch in range(2):
            run.on_minibatch_begin(epoch, minibatch, 2)
            run.before_parameter_optimization(epoch, minibatch, 2)
            run.on_minibatch_end(epoch, minibatch, 2)
        run.on_epoch_end(epoch)
    zeros = {name: float((weight == 0).float().mean()) for name, weight in net.named_parameters()}
    assert zeros == {"fc1.weight": pytest.approx(0.59, abs=0.01), "fc2.weight": pytest.approx(0.68, abs=0.01)}


# The laws of every component


def test_it_keeps_the_laws():
    keys = {"low_thresh_mult": 0.8, "hi_thresh_mult": 1.2, "sensitivity_multiplier": 0.1}
    check_component(SplicingPruner, sensitivities={"*.weight": 0.3, "conv1.weight": 0.1}, **keys)
