"""Magnitude pruning: the threshold, whom it applies to, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_magnitude_pruner import MagnitudeParameterPruner
from structlog.testing import capture_logs
from torch import nn

from prunekit import CompressionScheduler, Progress, ScheduleError, Window
from prunekit.components import Context
from prunekit.testing import check_component, weights_model


def scheduler(net: nn.Module, thresholds: Any) -> CompressionScheduler:
    schedule = {
        "version": 1,
        "pruners": {"magnitude": {"class": "MagnitudeParameterPruner", "thresholds": thresholds}},
        "policies": [{"pruner": {"instance_name": "magnitude"}, "starting_epoch": 0, "ending_epoch": 3}],
    }
    return CompressionScheduler.from_dict(schedule, net)


def pruned_by(thresholds: dict[str, float], net: nn.Module) -> dict[str, list[int]]:
    """The indices that the first epoch prunes, by parameter."""
    run = scheduler(net, thresholds)
    run.on_epoch_begin(0)
    return {name: (~mask).flatten().nonzero().flatten().tolist() for name, mask in run.masks.items()}


# Which weights


def test_weights_at_or_below_the_threshold_go():
    net = weights_model(fc1=[[-1.0, 6.0, -3.0], [2.0, -5.0, 0.0]])
    run = scheduler(net, {"fc1.weight": 2})
    run.on_epoch_begin(0)
    assert net.fc1.weight.tolist() == [[0, 6, -3], [0, -5, 0]]
    assert run.masks["fc1.weight"].tolist() == [[False, True, True], [False, True, False]]


@pytest.mark.parametrize(
    ("threshold", "gone"), [(0, [4]), (0.9, [4]), (1.0, [3, 4]), (2.5, [2, 3, 4]), (9, [0, 1, 2, 3, 4])]
)
def test_the_threshold_says_which_go(threshold, gone):
    assert pruned_by({"fc1.weight": threshold}, weights_model(fc1=[4.0, -3.0, 2.0, -1.0, 0.0])) == {"fc1.weight": gone}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_weight_written_like_the_threshold_goes_in_every_type(dtype):
    # 0.1 is a different number in each of these types.
    net = weights_model(fc1=torch.tensor([0.1, 0.11, -0.1, 0.09], dtype=dtype))
    assert pruned_by({"fc1.weight": 0.1}, net) == {"fc1.weight": [0, 2, 3]}
    assert net.fc1.weight.dtype == dtype


def test_a_threshold_beyond_the_range_of_the_type_prunes_every_finite_weight():
    net = weights_model(fc1=torch.tensor([65504.0, -1.0], dtype=torch.float16))
    assert pruned_by({"fc1.weight": 1e6}, net) == {"fc1.weight": [0, 1]}


# Which parameters


def test_each_tensor_has_its_threshold():
    net = weights_model(fc1=[1.0, 2.0, 3.0], fc2=[1.0, 2.0, 3.0])
    assert pruned_by({"fc1.weight": 1, "fc2.weight": 2}, net) == {"fc1.weight": [0], "fc2.weight": [0, 1]}


def test_the_star_is_every_parameter_that_nothing_else_selects_wherever_it_stands():
    net = weights_model(fc1=[1.0, 2.0, 3.0], fc2=[1.0, 2.0, 3.0], conv=[1.0, 2.0, 3.0])
    assert pruned_by({"*": 3, "fc1.weight": 1, "fc?.weight": 2}, net) == {
        "fc1.weight": [0],
        "fc2.weight": [0, 1],
        "conv.weight": [0, 1, 2],
    }


def test_without_a_star_the_other_parameters_are_left_alone():
    net = weights_model(fc1=[1.0, 2.0], fc2=[1.0, 2.0])
    assert pruned_by({"fc2.weight": 1}, net) == {"fc2.weight": [0]}
    assert net.fc1.weight.tolist() == [1, 2]


# Over the epochs


def test_pruning_again_changes_nothing():
    net = weights_model(fc1=[3.0, 1.0, 2.0, 1.0])
    run = scheduler(net, {"fc1.weight": 1})
    seen = []
    for epoch in (0, 1):
        run.on_epoch_begin(epoch)
        seen.append((run.masks["fc1.weight"].tolist(), net.fc1.weight.tolist()))
    assert seen == [([True, False, True, False], [3, 0, 2, 0])] * 2


def test_a_weight_that_training_makes_small_is_pruned_at_the_next_active_epoch():
    net = weights_model(fc1=[3.0, 1.0, 2.0, 4.0])
    run = scheduler(net, {"fc1.weight": 1})
    with capture_logs() as lines:
        run.on_epoch_begin(0)
        with torch.no_grad():
            net.fc1.weight -= torch.tensor([0.0, 0.0, 1.5, 0.0])
        run.on_epoch_begin(1)
    told = [line["sparsity"] for line in lines if line["event"] == "masks changed"]
    assert net.fc1.weight.tolist() == [3, 0, 0, 4]
    assert told == [{"fc1.weight": [0.0, 0.25]}, {"fc1.weight": [0.25, 0.5]}]


# What is refused


@pytest.mark.parametrize(
    ("thresholds", "path", "message"),
    [
        ({}, "thresholds", "selects nothing: name at least one parameter, or '*'"),
        ({"fc1.weight": -0.1}, "thresholds.fc1.weight", "must be greater than or equal to 0, got -0.1"),
        ({"fc1.weight": math.nan}, "thresholds.fc1.weight", "must be"),
        ({"fc1.weight": math.inf}, "thresholds.fc1.weight", "must be a finite number, got inf"),
        ({"fc1.weight": "0.1"}, "thresholds.fc1.weight", "must be a valid number, got '0.1'"),
        ({"fc1.weight": False}, "thresholds.fc1.weight", "must be a valid number, got False"),
        ([0.1], "thresholds", "got [0.1]"),
        ({"fc9.weight": 0.5}, "thresholds.fc9.weight", "'fc9.weight' selects nothing in the model"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(thresholds, path, message):
    with pytest.raises(ScheduleError) as error:
        scheduler(weights_model(fc1=[1.0, 2.0]), thresholds)
    (problem,) = error.value.problems
    assert (problem.path, message in problem.message) == (f"pruners.magnitude.{path}", True)


# For any weights


numbers = st.integers(-8, 8).map(lambda n: n / 4)


@settings(deadline=None)  # the first call of torch is slow
@given(st.lists(numbers, min_size=1, max_size=40), numbers.map(abs), numbers.map(abs))
def test_exactly_what_is_above_the_threshold_stays_so_a_higher_one_prunes_no_less(values, one, other):
    net = weights_model(fc1=values)
    parameters = dict(net.named_parameters())
    masks = []
    for threshold in sorted((one, other)):
        context = Context(net, {}, Progress(0), Window(0, 1), {"fc1.weight": threshold}, {})
        masks.append(MagnitudeParameterPruner({"*": threshold}).compute_masks(parameters, context)["fc1.weight"])
        assert masks[-1].tolist() == [abs(value) > threshold for value in values]
    assert not (masks[1] & ~masks[0]).any()


# The laws of every component


def test_it_keeps_the_laws():
    check_component(MagnitudeParameterPruner, thresholds={"*.weight": 0.1})
