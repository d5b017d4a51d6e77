"""The threshold in two slopes: by the paper's algorithm, for every kind of window, and what is refused."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_baidu_rnn_pruner import BaiduRNNPruner
from torch import nn

from prunekit import CompressionScheduler, Progress, Schedule, ScheduleError, Window
from prunekit.components import Context
from prunekit.testing import check_component, weights_model

# In a window of 3 epochs with its ramp at epoch 1: θ = 2 · 4 / (2 · 1 + 3 · 2) = 1 and φ = 1.5.
KEYS: dict[str, Any] = {"q": 4.0, "ramp_epoch_offset": 1, "ramp_slope_mult": 1.5, "weights": ["fc1.weight"]}


def scheduler(net: nn.Module, window: Any = None, args: Any = None, **keys: Any) -> CompressionScheduler:
    window = window or {"starting_epoch": 0, "ending_epoch": 3}
    policy = {"pruner": {"instance_name": "rnn", "args": args or {}}, **window}
    pruner = {"class": "BaiduRNNPruner", **KEYS, **keys}
    return CompressionScheduler.from_dict({"version": 1, "pruners": {"rnn": pruner}, "policies": [policy]}, net)


def pruner(**keys: Any) -> BaiduRNNPruner:
    return BaiduRNNPruner(**{**KEYS, **keys})


def thresholds(window: Window, **keys: Any) -> dict[int, float]:
    return {epoch: pruner(**keys).threshold(Progress(epoch), window) for epoch in window.active}


# The threshold


def test_the_threshold_rises_by_one_slope_before_the_ramp_and_by_another_from_it_on():
    assert thresholds(Window(0, 3)) == {0: 1, 1: 2 + 1.5, 2: 2 + 3}


def test_weights_at_or_below_the_threshold_go():
    net = weights_model(fc1=[1.0, -1.1, 3.5, -3.6, 5.0, 5.1])
    run, seen = scheduler(net), []
    for epoch in range(3):
        run.on_epoch_begin(epoch)
        seen.append(net.fc1.weight.tolist())
    assert seen == [
        pytest.approx([0, -1.1, 3.5, -3.6, 5, 5.1]),
        pytest.approx([0, 0, 0, -3.6, 5, 5.1]),
        pytest.approx([0, 0, 0, 0, 0, 5.1]),
    ]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"q": 8.0}, {0: 2, 1: 7, 2: 10}),
        ({"ramp_epoch_offset": 0}, {0: 8 / 9 * 2.5, 1: 8 / 9 * 4, 2: 8 / 9 * 5.5}),
        ({"ramp_epoch_offset": 2}, {0: 8 / 7, 1: 16 / 7, 2: 8 / 7 * 4.5}),
        ({"ramp_slope_mult": 2.0}, {0: 1, 1: 4, 2: 6}),
        ({"q": 0.0}, {0: 0, 1: 0, 2: 0}),
    ],
)
def test_every_key_changes_it(keys, expected):
    assert thresholds(Window(0, 3), **keys) == pytest.approx(expected)


def test_it_is_algorithm_1_of_the_paper_with_epochs_as_its_iterations():
    start, end, frequency, offset, q, mult = 4, 21, 3, 3, 0.17, 2.0
    ramp = start + offset
    theta = 2 * q * frequency / (2 * (ramp - start) + 3 * (end - ramp))  # equation 1
    phi = mult * theta
    expected = {}
    for current in range(start, end, frequency):
        if current < ramp:
            expected[current] = theta * (current - start + 1) / frequency
        else:
            expected[current] = (theta * (ramp - start + 1) + phi * (current - ramp + 1)) / frequency
    keys = {"q": q, "ramp_epoch_offset": offset, "ramp_slope_mult": mult}
    assert thresholds(Window(start, end, frequency), **keys) == pytest.approx(expected)


@given(st.integers(0, 9), st.integers(1, 40), st.integers(1, 7), st.data())
def test_an_epoch_has_the_same_threshold_however_often_the_policy_is_active(start, length, frequency, data):
    keys = {"ramp_epoch_offset": data.draw(st.integers(0, length - 1))}
    every, some = Window(start, start + length), Window(start, start + length, frequency)
    assert thresholds(some, **keys).items() <= thresholds(every, **keys).items()


def test_listed_epochs_are_a_window_from_the_first_to_the_last():
    listed = thresholds(Window(epochs=[2, 3, 9]), ramp_epoch_offset=4)
    assert listed.items() <= thresholds(Window(2, 10), ramp_epoch_offset=4).items()
    net = weights_model(fc1=[1.0, 3.5, 5.0, 6.0])
    run = scheduler(net, {"epochs": [0, 2]})
    run.on_epoch_begin(0)
    run.on_epoch_begin(2)
    assert net.fc1.weight.tolist() == [0, 0, 0, 6]


def test_one_pruner_in_two_windows_has_a_threshold_in_each():
    net = weights_model(fc1=[1.0, 3.5, 5.0, 6.0])
    policies = [
        {"pruner": {"instance_name": "rnn"}, "starting_epoch": start, "ending_epoch": start + 3} for start in (0, 10)
    ]
    data = {"version": 1, "pruners": {"rnn": {"class": "BaiduRNNPruner", **KEYS}}, "policies": policies}
    run, seen = CompressionScheduler.from_dict(data, net), {}
    for epoch in (0, 2, 10, 12):
        with torch.no_grad():
            net.fc1.weight.copy_(torch.tensor([1.0, 3.5, 5.0, 6.0]))
        run.on_epoch_begin(epoch)
        seen[epoch] = int((~run.masks["fc1.weight"]).sum())
    assert seen == {0: 1, 2: 3, 10: 1, 12: 3}


def test_all_weights_of_a_pruner_share_it_and_others_are_left_alone():
    net = weights_model(fc1=[1.0, 2.0], fc2=[[0.5], [9.0]], fc3=[0.5, 9.0])
    run = scheduler(net, weights=["fc1.weight", "fc2.*"])
    run.on_epoch_begin(0)
    assert [p.tolist() for p in net.parameters()] == [[0, 2], [[0], [9]], [0.5, 9]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_weights_of_every_type_are_compared(dtype):
    net = weights_model(fc1=torch.tensor([1.0, 2.0, 3.0], dtype=dtype))
    scheduler(net).on_epoch_begin(0)
    assert (net.fc1.weight.tolist(), net.fc1.weight.dtype) == ([0, 2, 3], dtype)


# What is refused


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        ({"q": -1}, "q", "must be greater than or equal to 0, got -1"),
        ({"q": math.nan}, "q", "must be"),
        ({"ramp_epoch_offset": -1}, "ramp_epoch_offset", "must be greater than or equal to 0, got -1"),
        ({"ramp_epoch_offset": 1.5}, "ramp_epoch_offset", "got 1.5"),
        (
            {"ramp_epoch_offset": 3},
            "ramp_epoch_offset",
            "the ramp would start at epoch 3, and the window ends with epoch 2",
        ),
        ({"ramp_slope_mult": -2}, "ramp_slope_mult", "must be greater than or equal to 0, got -2"),
        ({"weights": []}, "weights", "selects nothing: name at least one parameter, or '*'"),
        ({"weights": ["fc9.weight"]}, "weights[0]", "'fc9.weight' selects nothing in the model"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(keys, path, message):
    with pytest.raises(ScheduleError) as error:
        scheduler(weights_model(fc1=[1.0, 2.0]), **keys)
    (problem,) = error.value.problems
    assert (problem.path, message in problem.message) == (f"pruners.rnn.{path}", True)


# For any weights

numbers = st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=30)


def chosen(values: list[float], epoch: int, window: Window, **keys: Any) -> torch.Tensor:
    net = weights_model(w=values)
    context = Context(net, {}, Progress(epoch), window, {"w.weight": None}, {})
    return pruner(weights="*", **keys).compute_masks(dict(net.named_parameters()), context)["w.weight"]


@settings(deadline=None)
@given(numbers, st.floats(0, 9), st.integers(0, 11), st.floats(0, 4))
def test_while_weights_stand_still_each_mask_holds_the_next_and_their_order_does_not_matter(values, q, offset, mult):
    window, keys = Window(0, 12), {"q": q, "ramp_epoch_offset": offset, "ramp_slope_mult": mult}
    masks = [chosen(values, epoch, window, **keys) for epoch in window.active]
    assert not any((later & ~earlier).any() for earlier, later in pairwise(masks))
    assert torch.equal(chosen(values[::-1], 5, window, **keys), masks[5].flip(0))
    assert all(abs(value) > 0 for value, kept in zip(values, masks[0].tolist(), strict=True) if kept)


# The card


def test_the_schedule_of_the_card_has_the_thresholds_that_the_card_says():
    card = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (schedule, *_) = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    assert "The threshold is 0.008 in epoch 0, 0.04 in epoch 4, 0.06 in epoch 5," in card
    assert "and 0.108 in epoch 9." in card
    net = weights_model(fc1=(torch.arange(1000) + 0.5) / 1000, fc2=torch.ones(1))
    run, gone = CompressionScheduler(Schedule.from_text(schedule), net), {}
    for epoch in range(10):
        run.on_epoch_begin(epoch)
        gone[epoch] = int((net.fc1.weight == 0).sum())
        run.on_epoch_end(epoch)
    assert [gone[epoch] for epoch in (0, 4, 5, 9)] == [8, 40, 60, 108]


# The laws of every component


def test_it_keeps_the_laws():
    keys = {"q": 0.2, "ramp_epoch_offset": 1, "ramp_slope_mult": 1.5}
    check_component(BaiduRNNPruner, weights=["fc1.weight", "conv2.weight"], **keys)
