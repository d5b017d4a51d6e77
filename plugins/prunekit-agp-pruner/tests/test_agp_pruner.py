"""Automated gradual pruning: the curve, exact counts, ties, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_agp_pruner import AutomatedGradualPruner
from structlog.testing import capture_logs
from torch import nn

from prunekit import CompressionScheduler, Progress, ScheduleError, Window
from prunekit.components import Context
from prunekit.testing import check_component, weights_model

HALF = {"initial_sparsity": 0.0, "final_sparsity": 0.5, "weights": ["fc1.weight"]}


def scheduler(net: nn.Module, pruner: dict[str, Any], **window: Any) -> CompressionScheduler:
    schedule = {
        "version": 1,
        "pruners": {"agp": {"class": "AutomatedGradualPruner", **pruner}},
        "policies": [{"pruner": {"instance_name": "agp"}, **window}],
    }
    return CompressionScheduler.from_dict(schedule, net)


def zeros_by_epoch(pruner: dict[str, Any], size: int = 16, length: int = 12, **window: Any) -> list[int]:
    """How many of the weights 1 … size of fc1 are zero after each epoch has begun."""
    net = weights_model(fc1=torch.arange(1.0, size + 1))
    run = scheduler(net, pruner, **window)
    counts = []
    for epoch in range(length):
        run.on_epoch_begin(epoch)
        counts.append(int((net.fc1.weight == 0).sum()))
        run.on_epoch_end(epoch)
    return counts


def pruned(mask: torch.Tensor) -> list[int]:
    return (~mask).nonzero().flatten().tolist()


def masks_at(pruner: AutomatedGradualPruner, epoch: int, net: nn.Module, window: Window) -> dict[str, torch.Tensor]:
    parameters = dict(net.named_parameters())
    context = Context(net, {}, Progress(epoch), window, dict.fromkeys(parameters), {})
    return dict(pruner.compute_masks(parameters, context))


# The curve


def test_sparsity_follows_the_cubic_curve_over_the_active_epochs():
    # 0.5 - 0.5 (1 - t)^3 at t = 0, 1/4, 1/2, 3/4, 1, of 64 weights.
    assert zeros_by_epoch(HALF, 64, 6, starting_epoch=0, ending_epoch=5) == [0, 18, 28, 31, 32, 32]


def test_nothing_moves_between_active_epochs():
    assert zeros_by_epoch(HALF, 16, 7, starting_epoch=1, ending_epoch=6, frequency=2) == [0, 0, 0, 7, 7, 8, 8]


@pytest.mark.parametrize(("end", "last"), [(10, 9), (11, 9), (12, 9), (13, 12)])
def test_the_last_active_epoch_reaches_final_sparsity_also_when_frequency_does_not_divide_the_window(end, last):
    counts = zeros_by_epoch(HALF, 16, 13, starting_epoch=0, ending_epoch=end, frequency=3)
    assert (counts[last - 1] < 8, counts[last]) == (True, 8)


def test_listed_epochs_span_the_curve_from_the_first_to_the_last():
    # t = 0, 1/4, 1: the distance counts, not the position in the list.
    assert zeros_by_epoch(HALF, 64, 6, epochs=[1, 2, 5]) == [0, 0, 18, 18, 18, 32]


@pytest.mark.parametrize("window", [{"epochs": [1]}, {"starting_epoch": 1, "ending_epoch": 3, "frequency": 5}])
def test_a_single_active_epoch_prunes_to_final_sparsity_at_once(window):
    assert zeros_by_epoch(HALF, 16, 3, **window) == [0, 8, 8]


def test_initial_sparsity_is_what_the_first_active_epoch_prunes():
    window = {"starting_epoch": 0, "ending_epoch": 3}
    assert zeros_by_epoch({**HALF, "initial_sparsity": 0.25}, 16, 3, **window) == [4, 7, 8]


def test_final_sparsity_is_what_the_last_active_epoch_prunes():
    window = {"starting_epoch": 0, "ending_epoch": 3}
    assert zeros_by_epoch({**HALF, "final_sparsity": 1.0}, 16, 3, **window) == [0, 14, 16]


def test_initial_sparsity_is_exact_where_the_formula_rounds_below_it():
    # 0.5 + (0.1 - 0.5) is 0.0999…, and floor(0.0999… * 10) would be 0.
    pruner = {**HALF, "initial_sparsity": 0.1}
    assert zeros_by_epoch(pruner, 10, 1, starting_epoch=0, ending_epoch=3) == [1]


@pytest.mark.parametrize(
    ("curve", "counts"),
    [
        ("cubic", [0, 7, 8]),
        ("linear", [0, 4, 8]),
        ("exponential", [0, 4, 8]),
        ("one-shot", [8, 8, 8]),
        ([0, 0.25, 1], [0, 2, 8]),
    ],
)
def test_another_curve_leads_to_the_same_end(curve, counts):
    assert zeros_by_epoch({**HALF, "curve": curve}, length=3, starting_epoch=0, ending_epoch=3) == counts


def test_the_target_does_not_move_within_an_epoch():
    net = weights_model(fc1=torch.arange(1.0, 17))
    schedule = {
        "version": 1,
        "pruners": {"agp": {"class": "AutomatedGradualPruner", **HALF}},
        "policies": [
            {
                "pruner": {"instance_name": "agp", "args": {"mini_batch_pruning_frequency": 1}},
                "starting_epoch": 0,
                "ending_epoch": 3,
            }
        ],
    }
    run = CompressionScheduler.from_dict(schedule, net)
    run.on_epoch_begin(1)
    counts = []
    for minibatch in range(4):
        run.on_minibatch_begin(1, minibatch, 4)
        counts.append(int((net.fc1.weight == 0).sum()))
        run.on_minibatch_end(1, minibatch, 4)
    assert counts == [7, 7, 7, 7]


# Which weights


def test_the_smallest_magnitudes_go():
    net = weights_model(fc1=[[-1.0, 6.0, -3.0], [2.0, -5.0, 4.0]])
    run = scheduler(net, HALF, epochs=[0])
    run.on_epoch_begin(0)
    assert net.fc1.weight.tolist() == [[0, 6, 0], [0, -5, 4]]
    assert run.masks["fc1.weight"].tolist() == [[False, True, False], [False, True, True]]


def test_of_equal_magnitudes_the_lowest_indices_go():
    net = weights_model(fc1=[2.0, -1.0, 1.0, -1.0, 1.0, 2.0, 1.0, 3.0])
    scheduler_ = scheduler(net, {**HALF, "final_sparsity": 0.375}, epochs=[0])
    scheduler_.on_epoch_begin(0)
    assert pruned(scheduler_.masks["fc1.weight"]) == [1, 2, 3]


def test_each_tensor_is_ranked_by_itself():
    net = weights_model(fc1=[1.0, 2.0], fc2=[10.0, 20.0, 30.0, 40.0])
    run = scheduler(net, {**HALF, "weights": ["*"]}, epochs=[0])
    run.on_epoch_begin(0)
    assert {name: pruned(mask) for name, mask in run.masks.items()} == {"fc1.weight": [0], "fc2.weight": [0, 1]}


@pytest.mark.parametrize(
    ("weights", "names"),
    [
        (["fc1.weight"], ["fc1.weight"]),
        ("fc2.weight", ["fc2.weight"]),
        ("*", ["fc1.weight", "fc2.weight", "conv.weight"]),
        (["fc*.weight"], ["fc1.weight", "fc2.weight"]),
        (["re:(conv|fc2).*"], ["fc2.weight", "conv.weight"]),
        (["conv.weight", "fc1.weight"], ["fc1.weight", "conv.weight"]),
    ],
)
def test_weights_selects_the_parameters(weights, names):
    net = weights_model(fc1=[1.0, 2.0], fc2=[1.0, 2.0], conv=torch.arange(1.0, 17).reshape(2, 2, 2, 2))
    run = scheduler(net, {**HALF, "weights": weights}, epochs=[0])
    run.on_epoch_begin(0)
    assert sorted(run.masks) == sorted(names)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_count_is_exact_in_every_type(dtype):
    # In bfloat16 the weights 0 … 999 are full of ties: it has 8 significant bits.
    net = weights_model(fc1=torch.arange(1000).to(dtype))
    run = scheduler(net, {**HALF, "final_sparsity": 0.8015}, epochs=[0])
    run.on_epoch_begin(0)
    assert pruned(run.masks["fc1.weight"]) == list(range(801))
    assert net.fc1.weight.dtype == dtype


# What stays as it is


def test_pruning_to_the_same_sparsity_again_changes_nothing():
    net = weights_model(fc1=[3.0, 1.0, 2.0, 1.0])
    run = scheduler(net, HALF, starting_epoch=0, ending_epoch=2)
    run.on_epoch_begin(1)
    first = run.masks["fc1.weight"].tolist(), net.fc1.weight.tolist()
    run.on_epoch_begin(1)
    assert first == ([True, False, True, False], [3, 0, 2, 0])
    assert (run.masks["fc1.weight"].tolist(), net.fc1.weight.tolist()) == first


def test_a_tensor_of_which_the_curve_asks_less_than_one_element_is_left_alone():
    net = weights_model(fc1=[1.0, 2.0, 3.0, 4.0], fc2=torch.arange(1.0, 11))
    run = scheduler(net, {"initial_sparsity": 0.2, "final_sparsity": 0.5, "weights": "*"}, epochs=[0, 1])
    run.on_epoch_begin(0)
    assert {name: pruned(mask) for name, mask in run.masks.items()} == {"fc2.weight": [0, 1]}


def test_the_trace_says_when_nothing_is_pruned_and_how_the_sparsity_changes():
    net = weights_model(fc1=torch.arange(1.0, 17))
    with capture_logs() as lines:
        run = scheduler(net, HALF, starting_epoch=0, ending_epoch=3)
        for epoch in range(3):
            run.on_epoch_begin(epoch)
    told = [(line["event"], line["epoch"], line.get("sparsity")) for line in lines if "prune" in line["event"]]
    told += [(line["event"], line["epoch"], line["sparsity"]) for line in lines if line["event"] == "masks changed"]
    assert told == [
        ("nothing pruned", 0, None),
        ("masks changed", 1, {"fc1.weight": [0.0, 0.4375]}),
        ("masks changed", 2, {"fc1.weight": [0.4375, 0.5]}),
    ]


def test_a_run_resumed_halfway_prunes_what_the_straight_one_does(tmp_path: Path):
    window = {"starting_epoch": 0, "ending_epoch": 4}
    straight = weights_model(fc1=torch.arange(1.0, 17))
    run = scheduler(straight, HALF, **window)
    for epoch in range(2):
        run.on_epoch_begin(epoch)
        run.on_epoch_end(epoch)
    torch.save((straight.state_dict(), run.state_dict()), tmp_path / "state")
    weights, state = torch.load(tmp_path / "state", weights_only=True)

    resumed = weights_model(fc1=torch.zeros(16))
    resumed.load_state_dict(weights)
    second = scheduler(resumed, HALF, **window)
    second.load_state_dict(state)
    for epoch in (2, 3):
        run.on_epoch_begin(epoch)
        second.on_epoch_begin(epoch)
        assert second.masks["fc1.weight"].tolist() == run.masks["fc1.weight"].tolist()
    assert resumed.fc1.weight.tolist() == straight.fc1.weight.tolist() == [0.0] * 8 + [float(n) for n in range(9, 17)]


# What is refused


@pytest.mark.parametrize("final", [0.3, 0.5])
def test_a_final_sparsity_that_is_not_above_the_initial_one_is_refused_where_it_stands(tmp_path: Path, final: float):
    file = tmp_path / "schedule.yaml"
    file.write_text(f"""\
version: 1
pruners:
  agp:
    class: AutomatedGradualPruner
    initial_sparsity: 0.5
    final_sparsity: {final}
    weights: [fc1.weight]
policies:
  - pruner:
      instance_name: agp
    starting_epoch: 0
    ending_epoch: 2
""")
    with pytest.raises(ScheduleError) as error:
        CompressionScheduler.from_yaml(file, weights_model(fc1=[1.0, 2.0]))
    what = f"pruners.agp.final_sparsity: must be above initial_sparsity 0.5, got {final}"
    assert str(error.value) == f"{file}:6:21: {what}"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("initial_sparsity", -0.1, "must be greater than or equal to 0, got -0.1"),
        ("initial_sparsity", math.nan, "must be"),
        ("final_sparsity", 1.01, "must be less than or equal to 1, got 1.01"),
        ("final_sparsity", 80, "must be less than or equal to 1, got 80"),
        ("final_sparsity", "0.8", "must be a valid number, got '0.8'"),
        ("final_sparsity", True, "must be a valid number, got True"),
        ("weights", [], "selects nothing: name at least one parameter, or '*'"),
        ("weights", "", "selects nothing"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(key, value, message):
    with pytest.raises(ScheduleError) as error:
        scheduler(weights_model(fc1=[1.0, 2.0]), {**HALF, key: value}, epochs=[0])
    (problem,) = error.value.problems
    assert (problem.path, message in problem.message) == (f"pruners.agp.{key}", True)


def test_a_parameter_that_the_model_lacks_is_refused_with_the_nearest_one():
    with pytest.raises(ScheduleError, match=r"weights\[0\]: 'fc1.wieght' selects nothing .* nearest are 'fc1.weight'"):
        scheduler(weights_model(fc1=[1.0, 2.0]), {**HALF, "weights": ["fc1.wieght"]}, epochs=[0])


# For any weights


few_values = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=60)


@settings(deadline=None)  # the first call of torch is slow
@given(few_values, st.floats(0, 0.9), st.floats(0.05, 0.1), st.integers(1, 9), st.integers(1, 4))
def test_while_weights_stand_still_masks_are_nested_and_end_exactly_at_the_final_count(
    values, initial, rise, length, frequency
):
    pruner = AutomatedGradualPruner(initial_sparsity=initial, final_sparsity=initial + rise, weights="*")
    net, window = weights_model(fc1=values), Window(2, 2 + length, frequency)
    gone: set[int] = set()
    for epoch in window.active:
        masks = masks_at(pruner, epoch, net, window)
        now = set(pruned(masks["fc1.weight"])) if masks else set()
        assert gone <= now
        gone = now
    assert len(gone) == math.floor((initial + rise) * len(values))


# The laws of every component


def test_it_keeps_the_laws():
    check_component(AutomatedGradualPruner, initial_sparsity=0.25, final_sparsity=0.75, weights="*.weight")
