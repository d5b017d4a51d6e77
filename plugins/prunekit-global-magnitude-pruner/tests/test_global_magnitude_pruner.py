"""Global magnitude pruning: one budget, floors, normalized magnitudes, and what is refused."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_global_magnitude_pruner import GlobalMagnitudePruner, GlobalMagnitudePruner_AGP
from structlog.testing import capture_logs
from torch import nn

from prunekit import CompressionScheduler, Progress, Schedule, ScheduleError, Trace, Window
from prunekit.components import Context
from prunekit.testing import check_component, weights_model

README = Path(__file__).parents[1] / "README.md"
SMALL_AND_LARGE = {"fc1": [0.1, 0.2, 0.3, 0.4], "fc2": [1.0, 2.0, 3.0, 4.0]}


def scheduler(net: nn.Module, cls: str = "GlobalMagnitudePruner", epochs: Any = (0,), **keys: Any) -> Any:
    schedule = {
        "version": 1,
        "pruners": {"p": {"class": cls, "weights": "*", **keys}},
        "policies": [{"pruner": {"instance_name": "p"}, "epochs": list(epochs)}],
    }
    return CompressionScheduler.from_dict(schedule, net)


def pruned_by(net: nn.Module, sparsity: float, **keys: Any) -> dict[str, list[int]]:
    """The indices that one epoch prunes, by layer; layers without a mask are left out."""
    run = scheduler(net, desired_sparsity=sparsity, **keys)
    run.on_epoch_begin(0)
    return {n.removesuffix(".weight"): (~m).flatten().nonzero().flatten().tolist() for n, m in run.masks.items()}


# One budget


def test_the_smallest_weights_go_wherever_they_are():
    net = weights_model(fc1=[[-1.0, 6.0, -3.0], [2.0, -5.0, 4.0]], fc2=[1.5, 0.5, -9.0, 2.5])
    assert pruned_by(net, 0.5) == {"fc1": [0, 3], "fc2": [0, 1, 3]}
    assert net.fc1.weight.tolist() == [[0, 6, -3], [0, -5, 4]]
    assert net.fc2.weight.tolist() == [0, 0, -9, 0]


@pytest.mark.parametrize(("sparsity", "count"), [(0.0, 0), (0.09, 0), (0.1, 1), (0.29, 2), (0.5, 5), (1, 10)])
def test_the_count_is_that_of_all_weights_together_rounded_down(sparsity: float, count: int):
    net = weights_model(fc1=torch.arange(1.0, 5), fc2=torch.arange(5.0, 11))
    assert sum(map(len, pruned_by(net, sparsity).values())) == count


def test_of_equal_weights_those_of_the_first_tensor_go_and_in_it_the_lowest_indices():
    assert pruned_by(weights_model(fc1=torch.ones(2), fc2=-torch.ones(4)), 0.5) == {"fc1": [0, 1], "fc2": [0]}


def test_the_selected_parameters_alone_share_the_budget():
    net = weights_model(fc1=[1.0, 2.0], fc2=[1.0, 2.0], conv=[0.1, 9.0])
    assert pruned_by(net, 0.5, weights=["fc2.weight", "conv.weight"]) == {"fc2": [0], "conv": [0]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_count_is_exact_in_every_type(dtype: torch.dtype):
    # In bfloat16 the weights 0 … 999 are full of ties: it has 8 significant bits.
    net = weights_model(fc1=torch.arange(500).to(dtype), fc2=torch.arange(500, 1000).to(dtype))
    assert pruned_by(net, 0.8015) == {"fc1": list(range(500)), "fc2": list(range(301))}


def test_tensors_of_different_types_are_compared_by_value():
    net = weights_model(fc1=torch.tensor([1.0, 3.0], dtype=torch.bfloat16), fc2=torch.tensor([2.0, 4.0]))
    assert pruned_by(net, 0.5) == {"fc1": [0], "fc2": [0]}


def test_a_tensor_of_which_nothing_goes_gets_no_mask_and_one_that_has_a_mask_gets_a_new_one():
    net = weights_model(**SMALL_AND_LARGE)
    run = scheduler(net, epochs=[0, 1], desired_sparsity=0.25)
    run.on_epoch_begin(0)
    assert list(run.masks) == ["fc1.weight"]
    with torch.no_grad():
        net.fc1.weight.fill_(9)
    run.on_epoch_begin(1)
    assert {name: mask.int().tolist() for name, mask in run.masks.items()} == {
        "fc1.weight": [1, 1, 1, 1],
        "fc2.weight": [0, 0, 1, 1],
    }


def test_a_tensor_that_is_emptied_is_told_in_the_log():
    with capture_logs() as lines:
        pruned_by(weights_model(**SMALL_AND_LARGE), 0.5)
    (line,) = [line for line in lines if line["log_level"] == "warning"]
    assert (line["event"], line["parameter"], line["shape"]) == ("all of a tensor is pruned", "fc1.weight", [4])
    with capture_logs() as lines:
        pruned_by(weights_model(**SMALL_AND_LARGE), 1)
    assert [line for line in lines if line["log_level"] == "warning"] == [], "that was asked for"


# Floors


@pytest.mark.parametrize(
    ("floor", "gone"),
    [
        (0, {"fc1": [0, 1, 2, 3]}),
        (0.25, {"fc1": [0, 1, 2], "fc2": [0]}),
        (0.26, {"fc1": [0, 1], "fc2": [0, 1]}),
        (0.5, {"fc1": [0, 1], "fc2": [0, 1]}),
    ],
)
def test_a_floor_stays_of_each_tensor_and_the_others_make_up_for_it(floor: float, gone: dict[str, list[int]]):
    assert pruned_by(weights_model(**SMALL_AND_LARGE), 0.5, floor=floor) == gone


def test_a_floor_of_seven_tenths_of_ten_is_seven():
    # 0.7 * 10 is 7.000000000000001 in floating point, of which the ceiling is 8.
    net = weights_model(fc1=torch.arange(1.0, 11), fc2=torch.arange(11.0, 21))
    assert pruned_by(net, 0.3, floor=0.7) == {"fc1": [0, 1, 2], "fc2": [0, 1, 2]}


def test_a_floor_that_leaves_too_little_to_prune_is_refused_at_load():
    with pytest.raises(ScheduleError) as error:
        scheduler(weights_model(fc1=[1.0, 2.0, 3.0], fc2=[1.0, 2.0, 3.0]), desired_sparsity=0.7, floor=0.5)
    (problem,) = error.value.problems
    assert problem.path == "pruners.p.floor"
    assert problem.message == "0.5 of each tensor leaves 2 of 6 weights to prune, and 0.7 asks for 4"


def test_under_a_curve_it_is_the_final_sparsity_that_the_floor_must_leave_room_for():
    keys = {"cls": "GlobalMagnitudePruner_AGP", "epochs": [0, 9], "initial_sparsity": 0, "floor": 0.5}
    scheduler(weights_model(fc1=torch.ones(10)), **keys, final_sparsity=0.5)
    with pytest.raises(
        ScheduleError, match=r"0\.5 of each tensor leaves 5 of 10 weights to prune, and 0\.6 asks for 6"
    ):
        scheduler(weights_model(fc1=torch.ones(10)), **keys, final_sparsity=0.6)


# Normalized magnitudes


def test_over_its_norm_a_tensor_of_small_weights_is_like_one_of_large_weights():
    net = {"fc1": [0.1, 0.2, 0.3, 0.4], "fc2": [1.0, 2.0, 3.0, 4.1]}
    assert pruned_by(weights_model(**net), 0.5, normalize="none") == {"fc1": [0, 1, 2, 3]}
    assert pruned_by(weights_model(**net), 0.5, normalize="l2") == {"fc1": [0, 1], "fc2": [0, 1]}
    assert pruned_by(weights_model(**net), 0.5, normalize="mean") == {"fc1": [0, 1], "fc2": [0, 1]}


def test_norm_and_mean_differ_where_weights_are_spread_differently():
    # Of [9, 3, 0 …] the norm is 9.49 and the mean 1.5; of [1, 1] they are 1.41 and 1: 3 is below 1 by the norm alone.
    weights = {"fc1": [9.0, 3.0, 0, 0, 0, 0, 0, 0], "fc2": [1.0, 1.0]}
    zeros = [2, 3, 4, 5, 6, 7]
    assert pruned_by(weights_model(**weights), 0.7, normalize="l2") == {"fc1": [1, *zeros]}
    assert pruned_by(weights_model(**weights), 0.7, normalize="mean") == {"fc1": zeros, "fc2": [0]}


def test_the_lamp_score_is_that_of_the_paper():
    # Equation 1 of arXiv 2010.07611: each square over the sum of those that come at or after it in ascending order.
    net = {"fc1": [1.0, -2.0, 3.0, -4.0], "fc2": [1.0, 0.1, 0.1]}
    lamp = [1 / 30, 4 / 29, 9 / 25, 1], [1, 0.01 / 1.02, 0.01 / 1.01]
    order = sorted((score, t, i) for t, scores in enumerate(lamp) for i, score in enumerate(scores))
    for count in range(1, 7):
        expected: dict[str, list[int]] = {}
        for _, tensor, index in order[:count]:
            expected.setdefault(f"fc{tensor + 1}", []).append(index)
        got = pruned_by(weights_model(**net), (count + 0.5) / 7, normalize="lamp")
        assert got == {name: sorted(indices) for name, indices in expected.items()}


def test_lamp_keeps_the_largest_weight_of_each_tensor_as_long_as_there_are_others():
    net = weights_model(fc1=[1e-6, 2e-6], fc2=[1.0, 2.0, 3.0])
    assert pruned_by(net, 0.6, normalize="lamp") == {"fc1": [0], "fc2": [0, 1]}


@pytest.mark.parametrize("normalize", ["none", "l2", "mean", "lamp"])
def test_a_tensor_of_zeros_goes_first(normalize: str):
    assert pruned_by(weights_model(fc1=[1.0, 2.0], fc2=[0.0, 0.0]), 0.5, normalize=normalize) == {"fc2": [0, 1]}


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["l2", "mean", "lamp"]), st.lists(st.integers(1, 2**24), min_size=1, max_size=40, unique=True))
def test_normalized_weights_of_one_tensor_keep_their_order(normalize: str, values: list[int]):
    # Neighbours in 24 bits would become equal if they were divided in 32 bits.
    weights = torch.tensor(values, dtype=torch.float32)
    count = len(values) // 2
    gone = pruned_by(weights_model(fc1=weights), (count + 0.5) / len(values), normalize=normalize).get("fc1", [])
    assert gone == sorted(sorted(range(len(values)), key=values.__getitem__)[:count])


# Gradually


def test_the_sparsity_follows_the_curve_over_the_active_epochs():
    run = scheduler(
        weights_model(fc1=torch.arange(1.0, 5), fc2=torch.arange(5.0, 9)),
        "GlobalMagnitudePruner_AGP",
        range(5),
        initial_sparsity=0,
        final_sparsity=0.75,
        curve="linear",
    )
    zeros = []
    for epoch in range(5):
        run.on_epoch_begin(epoch)
        zeros.append(tuple(int((~mask).sum()) for mask in run.masks.values()))
    assert zeros == [(), (1,), (3,), (4,), (4, 2)]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12), min_size=1, max_size=4),
    st.floats(0, 0.4),
    st.floats(0.05, 0.5),
    st.sampled_from(["none", "l2", "mean", "lamp"]),
)
def test_while_weights_stand_still_masks_are_nested_and_end_exactly_at_the_budget(values, initial, rise, normalize):
    pruner = GlobalMagnitudePruner_AGP(
        weights="*", initial_sparsity=initial, final_sparsity=initial + rise, normalize=normalize
    )
    net, window = weights_model(**{f"fc{i}": row for i, row in enumerate(values)}), Window(0, 4)
    parameters = dict(net.named_parameters())
    gone: set[tuple[str, int]] = set()
    for epoch in window.active:
        context = Context(net, {}, Progress(epoch), window, dict.fromkeys(parameters), {})
        masks = pruner.compute_masks(parameters, context)
        now = {(name, i) for name, mask in masks.items() for i in (~mask).nonzero().flatten().tolist()}
        assert gone <= now
        assert masks == {} or pruner.compute_masks(parameters, context).keys() == masks.keys()
        gone = now
    assert len(gone) == math.floor((initial + rise) * sum(map(len, values)))


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(8)), st.floats(0, 1))
def test_weights_in_another_order_lose_the_same_values(order: list[int], sparsity: float):
    weights = torch.arange(1.0, 9)
    kept = []
    for values in (weights, weights[order]):
        net = weights_model(fc1=values[:3].clone(), fc2=values[3:].clone())
        pruned_by(net, sparsity)
        kept.append(sorted([*net.fc1.weight.tolist(), *net.fc2.weight.tolist()]))
    assert kept[0] == kept[1]


# What is refused


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("weights", [], "selects nothing: name at least one parameter, or '*'"),
        ("desired_sparsity", 1.5, "must be less than or equal to 1, got 1.5"),
        ("floor", 1, "must be less than 1, got 1"),
        ("floor", -0.1, "must be greater than or equal to 0, got -0.1"),
        ("normalize", "l1", "must be 'none', 'l2', 'mean' or 'lamp', got 'l1'"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(key: str, value: Any, message: str):
    with pytest.raises(ScheduleError) as error:
        scheduler(weights_model(fc1=[1.0, 2.0]), **{"desired_sparsity": 0.5, key: value})
    (problem,) = error.value.problems
    assert (problem.path, message in problem.message) == (f"pruners.p.{key}", True), problem.message


# The card, and the laws of every component


def test_the_schedule_of_the_card_ends_where_the_card_says():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(12, 8), nn.Linear(8, 4)
            self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.conv3, self.fc = nn.Conv2d(8, 16, 1), nn.Linear(16, 4)

    (yaml,) = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    net = Network()
    run = CompressionScheduler(Schedule.from_text(yaml), net, trace=Trace(level="error"))
    for _ in run.epochs(31):
        pass
    weights = [weight for name, weight in net.named_parameters() if name.endswith("weight")]
    assert sum(int((weight == 0).sum()) for weight in weights) == 889
    assert all((weight == 0).float().mean() <= 0.9 for weight in weights)


def test_it_keeps_the_laws():
    check_component(GlobalMagnitudePruner, weights="*.weight", desired_sparsity=0.5, floor=0.25, normalize="l2")


def test_it_keeps_the_laws_gradually():
    check_component(GlobalMagnitudePruner_AGP, weights="*.weight", initial_sparsity=0.25, final_sparsity=0.75)
