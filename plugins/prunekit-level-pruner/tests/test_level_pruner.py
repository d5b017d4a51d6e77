"""Level pruning: exact counts, ties, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_level_pruner import SparsityLevelParameterPruner
from structlog.testing import capture_logs
from torch import nn

from prunekit import CompressionScheduler, Progress, ScheduleError, Window
from prunekit.components import Context
from prunekit.testing import check_component, weights_model


def scheduler(net: nn.Module, levels: Any, *policies: dict[str, Any]) -> CompressionScheduler:
    schedule = {
        "version": 1,
        "pruners": {"level": {"class": "SparsityLevelParameterPruner", "levels": levels}},
        "policies": policies or [{"pruner": {"instance_name": "level"}, "epochs": [0, 1]}],
    }
    return CompressionScheduler.from_dict(schedule, net)


def pruned_by(levels: dict[str, float], net: nn.Module) -> dict[str, list[int]]:
    """The indices that the first epoch prunes, by parameter."""
    run = scheduler(net, levels)
    run.on_epoch_begin(0)
    return {name: (~mask).flatten().nonzero().flatten().tolist() for name, mask in run.masks.items()}


# Which weights


def test_the_smallest_magnitudes_go():
    net = weights_model(fc1=[[-1.0, 6.0, -3.0], [2.0, -5.0, 4.0]])
    run = scheduler(net, {"fc1.weight": 0.5})
    run.on_epoch_begin(0)
    assert net.fc1.weight.tolist() == [[0, 6, 0], [0, -5, 4]]
    assert run.masks["fc1.weight"].tolist() == [[False, True, False], [False, True, True]]


@pytest.mark.parametrize(("level", "gone"), [(0.25, [3]), (0.5, [2, 3]), (0.74, [2, 3]), (0.75, [1, 2, 3])])
def test_the_level_says_how_many_go_rounded_down(level, gone):
    assert pruned_by({"fc1.weight": level}, weights_model(fc1=[4.0, -3.0, 2.0, 1.0])) == {"fc1.weight": gone}


def test_level_1_prunes_everything():
    assert pruned_by({"fc1.weight": 1}, weights_model(fc1=[4.0, 3.0])) == {"fc1.weight": [0, 1]}


def test_of_equal_magnitudes_the_lowest_indices_go():
    net = weights_model(fc1=[2.0, -1.0, 1.0, -1.0, 1.0, 2.0, 1.0, 3.0])
    assert pruned_by({"fc1.weight": 0.375}, net) == {"fc1.weight": [1, 2, 3]}


def test_a_constant_tensor_is_pruned_to_its_level_and_no_further():
    assert pruned_by({"fc1.weight": 0.25}, weights_model(fc1=torch.ones(2, 4))) == {"fc1.weight": [0, 1]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_count_is_exact_in_every_type(dtype):
    # In bfloat16 the weights 0 … 999 are full of ties: it has 8 significant bits.
    net = weights_model(fc1=torch.arange(1000).to(dtype))
    assert pruned_by({"fc1.weight": 0.8015}, net) == {"fc1.weight": list(range(801))}
    assert net.fc1.weight.dtype == dtype


@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 3, 2), (2, 1, 2, 3), (1, 2, 1, 2, 3)])
def test_tensors_of_any_shape_are_pruned_in_their_flat_order(shape):
    assert pruned_by({"fc1.weight": 0.25}, weights_model(fc1=torch.ones(shape))) == {"fc1.weight": [0, 1, 2]}


# Which parameters


def test_each_tensor_has_its_level_and_is_ranked_by_itself():
    net = weights_model(fc1=[1.0, 2.0, 3.0, 4.0], fc2=[10.0, 20.0, 30.0, 40.0])
    assert pruned_by({"fc1.weight": 0.25, "fc2.weight": 0.5}, net) == {"fc1.weight": [0], "fc2.weight": [0, 1]}


def test_the_star_is_every_parameter_that_nothing_else_selects_wherever_it_stands():
    net = weights_model(fc1=[1.0, 2.0, 3.0, 4.0], fc2=[1.0, 2.0, 3.0, 4.0], conv=[1.0, 2.0, 3.0, 4.0])
    assert pruned_by({"*": 0.75, "fc1.weight": 0.25, "fc?.weight": 0.5}, net) == {
        "fc1.weight": [0],
        "fc2.weight": [0, 1],
        "conv.weight": [0, 1, 2],
    }


def test_a_parameter_that_nothing_selects_is_left_alone():
    net = weights_model(fc1=[1.0, 2.0], fc2=[1.0, 2.0])
    assert pruned_by({"fc2.weight": 0.5}, net) == {"fc2.weight": [0]}


def test_a_policy_may_replace_the_levels():
    net = weights_model(fc1=[1.0, 2.0, 3.0, 4.0], fc2=[1.0, 2.0, 3.0, 4.0])
    pruner = {"instance_name": "level", "args": {"levels": {"fc2.weight": 0.75}}}
    run = scheduler(
        net,
        {"fc1.weight": 0.25},
        {"pruner": {"instance_name": "level"}, "epochs": [0]},
        {"pruner": pruner, "epochs": [1]},
    )
    run.on_epoch_begin(0)
    assert (net.fc1.weight.tolist(), net.fc2.weight.tolist()) == ([0, 2, 3, 4], [1, 2, 3, 4])
    run.on_epoch_begin(1)
    assert (net.fc1.weight.tolist(), net.fc2.weight.tolist()) == ([0, 2, 3, 4], [0, 0, 0, 4])


# What stays as it is


def test_pruning_to_the_same_level_again_changes_nothing():
    net = weights_model(fc1=[3.0, 1.0, 2.0, 1.0])
    run = scheduler(net, {"fc1.weight": 0.5})
    seen = []
    for epoch in (0, 1):
        run.on_epoch_begin(epoch)
        seen.append((run.masks["fc1.weight"].tolist(), net.fc1.weight.tolist()))
    assert seen == [([True, False, True, False], [3, 0, 2, 0])] * 2


@pytest.mark.parametrize("level", [0, 0.0, 0.24])
def test_a_level_of_less_than_one_element_leaves_the_tensor_alone_and_the_trace_says_so(level):
    net = weights_model(fc1=[4.0, 3.0, 2.0, 0.0])
    with capture_logs() as lines:
        assert pruned_by({"fc1.weight": level}, net) == {}
    assert [line["event"] for line in lines if "prune" in line["event"]] == ["nothing pruned"]


def test_level_0_of_one_tensor_does_not_keep_the_others_from_being_pruned():
    net = weights_model(fc1=[1.0, 2.0], fc2=[1.0, 2.0])
    assert pruned_by({"fc1.weight": 0, "*": 0.5}, net) == {"fc2.weight": [0]}


# What is refused


@pytest.mark.parametrize(
    ("levels", "path", "message"),
    [
        ({}, "pruners.level.levels", "selects nothing: name at least one parameter, or '*'"),
        ({"fc1.weight": -0.1}, "pruners.level.levels.fc1.weight", "must be greater than or equal to 0, got -0.1"),
        ({"fc1.weight": 1.01}, "pruners.level.levels.fc1.weight", "must be less than or equal to 1, got 1.01"),
        ({"fc1.weight": 50}, "pruners.level.levels.fc1.weight", "must be less than or equal to 1, got 50"),
        ({"fc1.weight": math.nan}, "pruners.level.levels.fc1.weight", "must be"),
        ({"fc1.weight": "half"}, "pruners.level.levels.fc1.weight", "must be a valid number, got 'half'"),
        ({"fc1.weight": None}, "pruners.level.levels.fc1.weight", "must be a valid number, got None"),
        (0.5, "pruners.level.levels", "got 0.5"),
        ({"fc9.weight": 0.5}, "pruners.level.levels.fc9.weight", "'fc9.weight' selects nothing in the model"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(levels, path, message):
    with pytest.raises(ScheduleError) as error:
        scheduler(weights_model(fc1=[1.0, 2.0]), levels)
    (problem,) = error.value.problems
    assert (problem.path, message in problem.message) == (path, True)


# For any weights


@settings(deadline=None)  # the first call of torch is slow
@given(st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=60), st.floats(0, 1))
def test_exactly_the_level_is_pruned_and_no_kept_weight_is_smaller_than_a_pruned_one(values, level):
    net = weights_model(fc1=values)
    parameters = dict(net.named_parameters())
    context = Context(net, {}, Progress(0), Window(0, 1), {"fc1.weight": level}, {})
    masks = SparsityLevelParameterPruner({"*": level}).compute_masks(parameters, context)
    count = math.floor(level * len(values))
    if count == 0:
        assert masks == {}
        return
    mask = masks["fc1.weight"].tolist()
    kept = [(abs(value), index) for index, value in enumerate(values) if mask[index]]
    gone = [(abs(value), index) for index, value in enumerate(values) if not mask[index]]
    assert len(gone) == count
    assert max(gone) < min(kept, default=(math.inf, 0))


# The laws of every component


def test_it_keeps_the_laws():
    check_component(SparsityLevelParameterPruner, levels={"*.weight": 0.5, "conv1.weight": 0.25})
