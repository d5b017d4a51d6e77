"""L1 ranking: which groups of which tensors go, how many, by every key; and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_l1_ranked_pruner import L1RankedStructureParameterPruner, L1RankedStructureParameterPruner_AGP
from structlog.testing import capture_logs
from torch import Tensor, nn

from prunekit import CompressionScheduler, Schedule, ScheduleError, Trace, load_plugins
from prunekit.testing import check_component

SILENT = Trace(level="error")
PLUGINS = load_plugins()  # once: it takes longer than all else in a test


def model(**weights: Any) -> nn.Module:
    """A model with a parameter `a.weight` for `a=[…]`."""
    net = nn.Module()
    for name, values in weights.items():
        layer = nn.Module()
        layer.weight = nn.Parameter(torch.as_tensor(values).clone())
        net.add_module(name, layer)
    return net


def graded(values: list[float], *shape: int, dim: int = 0) -> Tensor:
    """A tensor whose index i along `dim` holds nothing but values[i]."""
    view = [-1 if d == dim else 1 for d in range(len(shape))]
    return torch.tensor(values).reshape(view).expand(shape).clone()


def scheduler(net: nn.Module, trace: Trace | None = SILENT, epochs: Any = (0, 1), **keys: Any) -> CompressionScheduler:
    suffix = "_AGP" if "final_sparsity" in keys else ""
    pruner = {"class": f"L1RankedStructureParameterPruner{suffix}", "weights": "a.weight", **keys}
    policy = {"pruner": {"instance_name": "ranked"}, "epochs": list(epochs)}
    schedule = {"version": 1, "pruners": {"ranked": pruner}, "policies": [policy]}
    return CompressionScheduler.from_dict(schedule, net, trace=trace, plugins=PLUGINS)


def masks(net: nn.Module, **keys: Any) -> dict[str, Tensor]:
    """The masks of the first epoch."""
    run = scheduler(net, **keys)
    run.on_epoch_begin(0)
    return dict(run.masks)


def gone(mask: Tensor, dim: int = 0) -> list[int]:
    """The indices along a dimension that are pruned; each is kept or pruned whole."""
    flat = mask.movedim(dim, 0).flatten(1)
    assert torch.equal(flat.all(1), flat.any(1))
    return (~flat[:, 0]).nonzero().flatten().tolist()


def filters_gone(net: nn.Module, **keys: Any) -> dict[str, list[int]]:
    keys = {"granularity": {"dim": 0}, "desired_sparsity": 0.5, **keys}
    if keys["granularity"] is None:
        del keys["granularity"]
    return {name: gone(mask) for name, mask in masks(net, **keys).items()}


# The ranking


def test_the_rows_with_the_smallest_mean_magnitude_go():
    # Means 1.5, 2, 5 and 0.75. The sums are 3, 0, 0 and 1.5; the L2 norms 3, 2.8, 7.1 and 1.1: these rank differently.
    net = model(a=[[3.0, 0.0], [2.0, -2.0], [-5.0, 5.0], [1.0, 0.5]])
    run = scheduler(net, granularity={"dim": 0}, desired_sparsity=0.5)
    run.on_epoch_begin(0)
    assert net.a.weight.tolist() == [[0, 0], [2, -2], [-5, 5], [0, 0]]
    assert run.masks["a.weight"].tolist() == [[False] * 2, [True] * 2, [True] * 2, [False] * 2]


@pytest.mark.parametrize("seed", range(3))
def test_the_papers_procedure(seed: int):
    """Li et al., section 3.1: for each filter the sum of its absolute kernel weights; sort; prune the m smallest."""
    torch.manual_seed(seed)
    weight = torch.randn(8, 3, 3, 3)
    sums = [sum(abs(float(value)) for value in kernel.flatten()) for kernel in weight]
    smallest = sorted(sorted(range(8), key=lambda j: sums[j])[:3])
    assert filters_gone(model(a=weight), granularity=None, group_type="Filters", desired_sparsity=0.375) == {
        "a.weight": smallest
    }


def test_of_equal_groups_the_first_go():
    net = model(a=[[2.0], [1.0], [1.0], [-1.0], [3.0]])
    assert filters_gone(net, desired_sparsity=0.4) == {"a.weight": [1, 2]}
    assert filters_gone(model(a=torch.ones(4, 3)), desired_sparsity=0.25) == {"a.weight": [0]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_scores_are_told_apart_in_every_type(dtype: torch.dtype):
    """In bfloat16 a sum of 600 ones and one of 601 would be the same."""
    weight = torch.ones(4, 601, dtype=dtype)
    weight[2, 0] = weight[3, :2] = 0
    net = model(a=weight)
    assert filters_gone(net, desired_sparsity=0.5) == {"a.weight": [2, 3]}
    assert net.a.weight.dtype == dtype


# Which groups: group_type


@pytest.mark.parametrize(
    ("group_type", "layer", "dim"),
    [
        ("3D", nn.Conv1d(4, 4, 3), 0),
        ("3D", nn.Conv2d(4, 4, 3), 0),
        ("3D", nn.Conv3d(4, 4, 3), 0),
        ("Filters", nn.Conv1d(4, 4, 3), 0),
        ("Filters", nn.Conv2d(4, 4, 3, groups=2), 0),
        ("Filters", nn.Conv3d(4, 4, 3), 0),
        ("Channels", nn.Conv1d(4, 3, 2), 1),
        ("Channels", nn.Conv2d(4, 3, 2), 1),
        ("Channels", nn.Conv3d(4, 3, 2), 1),
        ("Channels", nn.Linear(4, 3), 1),
        ("Rows", nn.Linear(4, 3), 1),
        ("Rows", nn.Conv2d(4, 3, 1), 1),
    ],
)
def test_group_type_says_which_dimension_the_groups_are_of(group_type: str, layer: nn.Module, dim: int):
    """Ranked `Rows` are columns: published schedules use the word so on classifiers."""
    net = nn.Module()
    net.a = layer
    with torch.no_grad():
        net.a.weight.copy_(graded([3, 1, 4, 2], *net.a.weight.shape, dim=dim))
    (mask,) = masks(net, group_type=group_type, desired_sparsity=0.5).values()
    assert gone(mask, dim) == [1, 3]


def test_rows_by_name_are_inputs_and_by_granularity_outputs():
    weight = torch.tensor([[1.0, 5.0], [1.0, 6.0]])
    (by_name,) = masks(model(a=weight), group_type="Rows", desired_sparsity=0.5).values()
    (by_dimension,) = masks(model(a=weight), granularity={"dim": 0}, desired_sparsity=0.5).values()
    assert by_name.tolist() == [[False, True], [False, True]]
    assert by_dimension.tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize(
    ("block_shape", "tile"),
    [([2, 4, 1, 1], (2, 4)), ([4, 1, 1, 1], (4, 1)), ([1, 8, 1, 1], (1, 8)), ([4, 8, 1, 1], (4, 8))],
)
def test_blocks_are_tiles_of_repetitions_by_depth(block_shape: list[int], tile: tuple[int, int]):
    """Two of [2, 4, 1, 1] are two filters times four channels, as documented."""
    weight = torch.ones(8, 8, 1, 1)
    weight[-tile[0] :, : tile[1]] = 0.5
    kwargs = {"block_shape": block_shape}
    blocks = 64 // (tile[0] * tile[1])
    (mask,) = masks(model(a=weight), group_type="Blocks", kwargs=kwargs, desired_sparsity=1 / blocks).values()
    assert torch.equal(mask, weight == 1)


def test_blocks_may_reach_over_the_kernel():
    weight = torch.ones(2, 2, 2, 2)
    weight[1, 1, 0, :] = 0
    kwargs = {"block_shape": [1, 1, 1, 2]}
    (mask,) = masks(model(a=weight), group_type="Blocks", kwargs=kwargs, desired_sparsity=1 / 8).values()
    assert torch.equal(mask, weight == 1)


# Which groups: granularity


@pytest.mark.parametrize(
    ("granularity", "units", "rows"),
    [
        ({"dim": 0}, 8, [1]),
        ({"dim": 0, "size": 2}, 4, [2, 3]),
        ({"dim": 0, "heads": 2}, 2, [0, 1, 2, 3]),
        ({"dim": 0, "parts": 2}, 4, [1, 5]),
        ({"dim": 0, "parts": 2, "heads": 2}, 2, [2, 3, 6, 7]),
        ({"shape": [2, 2]}, 4, [2, 3]),
        ({"shape": [4, 2]}, 2, [0, 1, 2, 3]),
    ],
)
def test_granularity_says_what_goes_together(granularity: dict[str, Any], units: int, rows: list[int]):
    weight = graded([9.0, 1, 2, 4, 8, 3, 5, 6], 8, 2)
    (mask,) = masks(model(a=weight), granularity=granularity, desired_sparsity=1 / units).values()
    assert gone(mask) == rows


def test_tiles_may_reach_over_fewer_dimensions_than_the_tensor_has():
    (mask,) = masks(model(a=[[1.0, 0], [1, 2]]), granularity={"shape": [2]}, desired_sparsity=0.5).values()
    assert gone(mask, 1) == [0], "of columns that tie the first"


def test_embeddings_lose_whole_words_or_whole_dimensions():
    net = nn.Module()
    net.a = nn.Embedding(4, 3)
    with torch.no_grad():
        net.a.weight.copy_(torch.tensor([[9.0, 1, 2], [1, 1, 1], [9, 1, 9], [2, 0, 1]]))
    assert gone(masks(net, granularity={"dim": 0}, desired_sparsity=0.5)["a.weight"]) == [1, 3]
    net.a.weight.data = torch.tensor([[9.0, 1, 2], [1, 1, 1], [9, 1, 9], [2, 0, 1]])
    assert gone(masks(net, granularity={"dim": 1}, desired_sparsity=0.5)["a.weight"], 1) == [1]


def test_an_lstm_loses_hidden_units_in_all_four_gates_at_once():
    net = nn.Module()
    net.a = nn.LSTM(2, 3)
    with torch.no_grad():
        net.a.weight_ih_l0.copy_(graded([1.0, 1, 9, 1, 1, 1, 1, 5, 1, 1, 1, 1], 12, 2))
    (mask,) = masks(net, weights="a.weight_ih_l0", granularity={"dim": 0, "parts": 4}, desired_sparsity=0.34).values()
    assert gone(mask) == [0, 3, 6, 9], "unit 0 is the smallest over its four gates"
    net.a(torch.ones(1, 1, 2))


def test_attention_loses_heads_in_queries_keys_and_values_at_once():
    net = nn.Module()
    net.a = nn.MultiheadAttention(4, 2)
    with torch.no_grad():
        net.a.in_proj_weight.copy_(graded([1.0, 1, 2, 2, 1, 1, 2, 2, 9, 9, 2, 2], 12, 4))
        net.a.out_proj.weight.copy_(graded([1.0, 1, 2, 2], 4, 4, dim=1))
    (mask,) = masks(
        net, weights="a.in_proj_weight", granularity={"dim": 0, "heads": 2, "parts": 3}, desired_sparsity=0.5
    ).values()
    assert gone(mask) == [2, 3, 6, 7, 10, 11], "the second head, for its values are smallest"
    (mask,) = masks(net, weights="a.out_proj.weight", granularity={"dim": 1, "heads": 2}, desired_sparsity=0.5).values()
    assert gone(mask, 1) == [0, 1]


@pytest.mark.parametrize(
    "layer", [nn.ConvTranspose1d(3, 4, 2), nn.ConvTranspose2d(3, 4, 2), nn.ConvTranspose3d(3, 4, 2)]
)
def test_a_transposed_convolution_has_its_outputs_in_dimension_1(layer: nn.Module):
    net = nn.Module()
    net.a = layer
    with torch.no_grad():
        net.a.weight.copy_(graded([3, 1, 4, 2], *net.a.weight.shape, dim=1))
    (mask,) = masks(net, granularity={"dim": 1}, desired_sparsity=0.5).values()
    assert gone(mask, 1) == [1, 3]


# How many


@pytest.mark.parametrize(
    ("sparsity", "number"), [(0.1, 1), (0.19, 1), (0.2, 2), (0.25, 2), (0.5, 5), (0.99, 9), (1, 10)]
)
def test_the_sparsity_says_how_many_go_rounded_down(sparsity: float, number: int):
    net = model(a=graded([float(value) for value in range(1, 11)], 10, 2))
    assert filters_gone(net, desired_sparsity=sparsity) == {"a.weight": list(range(number))}


@pytest.mark.parametrize("sparsity", [0, 0.09])
def test_less_than_one_group_leaves_the_tensor_alone_and_the_trace_says_so(sparsity: float):
    net = model(a=graded([float(value) for value in range(1, 11)], 10, 2))
    with capture_logs() as lines:
        run = scheduler(net, trace=None, granularity={"dim": 0}, desired_sparsity=sparsity)
        run.on_epoch_begin(0)
    assert dict(run.masks) == {}
    assert net.a.weight.all()
    assert [line["parameters"] for line in lines if line["event"] == "nothing pruned"] == [["a.weight"]]


@pytest.mark.parametrize(
    ("rounding", "size", "number"),
    [("floor", 1, 4), ("ceil", 1, 5), ("round", 1, 5), ("floor", 4, 4), ("ceil", 4, 8), ("round", 4, 4)],
)
def test_rounding_and_group_size_say_how_many(rounding: str, size: int, number: int):
    """0.47 of 10 is 4.7, and 1.175 times four."""
    net = model(a=graded([float(value) for value in range(1, 11)], 10, 2))
    keys = {"desired_sparsity": 0.47, "rounding_fn": rounding, "group_size": size}
    assert filters_gone(net, **keys) == {"a.weight": list(range(number))}


# Which parameters


def test_weights_are_names_globs_or_patterns_each_ranked_by_itself():
    net = model(a=[[1.0], [2.0]], b=[[20.0], [10.0]], c=[[1.0], [2.0]])
    assert filters_gone(net, weights=["a.weight", "re:b.*"]) == {"a.weight": [0], "b.weight": [1]}
    net = model(a=[[1.0], [2.0]], b=[[20.0], [10.0]], c=[[1.0], [2.0]])
    assert filters_gone(net, weights="*") == {"a.weight": [0], "b.weight": [1], "c.weight": [0]}


def test_followers_lose_what_their_leader_loses():
    weights = {"a": [[1.0], [2.0], [3.0], [4.0]], "b": [[4.0, 4.0], [1.0, 1.0], [3.0, 3.0], [2.0, 2.0]]}
    names = ["b.weight", "a.weight"]
    assert filters_gone(model(**weights), weights=names) == {"a.weight": [0, 1], "b.weight": [1, 3]}
    led = {"weights": names, "group_dependency": "Leader"}
    assert filters_gone(model(**weights), **led) == {"a.weight": [1, 3], "b.weight": [1, 3]}


# Noise


def test_noise_changes_the_ranking_and_the_seed_which_way():
    def ranked(noise: float, seed: int) -> list[int]:
        net = model(a=graded([float(value) for value in range(1, 41)], 40, 1))
        return filters_gone(net, noise=noise, seed=seed, desired_sparsity=0.25)["a.weight"]

    assert [ranked(0, seed) for seed in range(3)] == [list(range(10))] * 3
    noisy = [ranked(1, seed) for seed in range(3)]
    assert len({tuple(indices) for indices in [*noisy, list(range(10))]}) == 4
    assert [len(indices) for indices in noisy] == [10] * 3
    assert noisy == [ranked(1, seed) for seed in range(3)]


# Gradually


@pytest.mark.parametrize(
    ("curve", "counts"),
    [
        ("cubic", [2, 6, 8, 9, 9]),
        ("linear", [2, 4, 6, 7, 9]),
        ("exponential", [2, 5, 7, 8, 9]),
        ("one-shot", [9, 9, 9, 9, 9]),
        ([0, 1, 1], [2, 6, 9, 9, 9]),
    ],
)
def test_the_agp_class_prunes_along_a_curve_from_initial_to_final_sparsity(curve: Any, counts: list[int]):
    net = model(a=graded([float(value) for value in range(1, 13)], 12, 2))
    run = scheduler(
        net,
        epochs=[0, 1, 2, 3, 4],
        granularity={"dim": 0},
        initial_sparsity=0.2,
        final_sparsity=0.8,
        curve=curve,
    )
    seen = []
    for epoch in range(5):
        run.on_epoch_begin(epoch)
        seen.append(gone(run.masks["a.weight"]))
    assert seen == [list(range(count)) for count in counts]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
    st.lists(st.floats(0, 0.99), min_size=2, max_size=2, unique=True).map(sorted),
    st.sampled_from(["cubic", "linear", "exponential", "one-shot"]),
    st.integers(1, 3),
)
def test_masks_nest_while_weights_stand_still(values: list[int], ends: list[float], curve: str, size: int):
    initial, final = ends
    net = model(a=torch.tensor([[float(value)] for value in values]))
    run = scheduler(
        net,
        epochs=range(5),
        granularity={"dim": 0},
        initial_sparsity=initial,
        final_sparsity=final,
        curve=curve,
        group_size=size,
    )
    before: set[int] = set()
    for epoch in range(5):
        run.on_epoch_begin(epoch)
        now = set(gone(run.masks["a.weight"])) if "a.weight" in run.masks else set()
        assert before <= now
        before = now
    assert len(before) == int(final * len(values) / size) * size


# What stays as it is


def test_a_target_that_is_applied_again_changes_nothing():
    net = model(a=[[1.0], [2.0], [3.0], [4.0]])
    run = scheduler(net, epochs=[0, 1, 2], granularity={"dim": 0}, desired_sparsity=0.5)
    seen = []
    for epoch in range(3):
        run.on_epoch_begin(epoch)
        seen.append((gone(run.masks["a.weight"]), net.a.weight.flatten().tolist()))
    assert seen == [([0, 1], [0, 0, 3, 4])] * 3


@settings(deadline=None, max_examples=50)
@given(st.permutations(range(6)), st.floats(0.2, 0.99))
def test_permuted_filters_lose_the_same_filters(order: list[int], sparsity: float):
    weight = torch.arange(1.0, 13).reshape(6, 2, 1, 1) * torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1)
    straight = filters_gone(model(a=weight), desired_sparsity=sparsity)["a.weight"]
    permuted = filters_gone(model(a=weight[order]), desired_sparsity=sparsity)["a.weight"]
    assert sorted(order[place] for place in permuted) == straight


# What is refused


FILTERS: dict[str, Any] = {"group_type": "Filters", "desired_sparsity": 0.5}
LINEAR, CONV = nn.Linear(6, 4), nn.Conv2d(6, 4, 3)


@pytest.mark.parametrize(
    ("layer", "keys", "path", "message"),
    [
        (LINEAR, {**FILTERS, "weights": []}, "weights", "selects nothing: name at least one parameter, or '*'"),
        (LINEAR, {**FILTERS, "weights": ["b.weight"]}, "weights[0]", "'b.weight' selects nothing in the model"),
        (
            LINEAR,
            FILTERS,
            "weights",
            "'a.weight' has shape [4, 6] and no groups 'Filters'; granularity: {dim: 0} means the rows of a matrix",
        ),
        (LINEAR, {**FILTERS, "weights": "a.bias"}, "weights", "'a.bias' has shape [4] and no groups 'Filters'"),
        (
            LINEAR,
            {**FILTERS, "group_type": "Rows", "weights": "a.bias"},
            "weights",
            "'a.bias' has shape [4] and no groups 'Rows'",
        ),
        (
            nn.ConvTranspose2d(4, 6, 3),
            FILTERS,
            "weights",
            "'a.weight' has shape [4, 6, 3, 3] in a ConvTranspose2d: dimension 0 is inputs and 1 outputs; "
            "say granularity: {dim: 0} or {dim: 1} in place of group_type: Filters",
        ),
        (
            CONV,
            {"group_type": "Blocks", "kwargs": {"block_shape": [3, 4, 1, 1]}, "desired_sparsity": 0.5},
            "weights",
            "'a.weight' has shape [4, 6, 3, 3], which tiles of shape [3, 4, 1, 1] do not cover",
        ),
        (
            CONV,
            {"group_type": "Blocks", "desired_sparsity": 0.5},
            "kwargs",
            "block_shape goes with group_type 'Blocks'",
        ),
        (
            CONV,
            {**FILTERS, "kwargs": {"block_shape": [1, 1, 1, 1]}},
            "kwargs",
            "block_shape goes with group_type 'Blocks'",
        ),
        (CONV, {**FILTERS, "granularity": {"dim": 0}}, "granularity", "leave out one of the two: both name the groups"),
        (CONV, {"desired_sparsity": 0.5}, "granularity", "say either group_type or granularity: both name the groups"),
        (
            LINEAR,
            {"granularity": {"dim": 2}, "desired_sparsity": 0.5},
            "weights",
            "'a.weight' has shape [4, 6] and no dimension 2",
        ),
        (
            LINEAR,
            {"granularity": {"dim": 0, "heads": 3}, "desired_sparsity": 0.5},
            "weights",
            "'a.weight' has shape [4, 6]: its dimension 0 is not divided into 3 heads",
        ),
        (
            LINEAR,
            {"granularity": {"dim": 0, "parts": 3}, "desired_sparsity": 0.5},
            "weights",
            "'a.weight' has shape [4, 6]: its dimension 0 is not divided into units of 1 in 3 parts",
        ),
        (
            LINEAR,
            {"granularity": {"shape": [4, 4]}, "desired_sparsity": 0.5},
            "weights",
            "'a.weight' has shape [4, 6], which tiles of shape [4, 4] do not cover",
        ),
        (
            LINEAR,
            {
                "granularity": {"dim": 0},
                "desired_sparsity": 0.5,
                "weights": ["a.weight", "c.weight"],
                "group_dependency": "Leader",
            },
            "weights[1]",
            "'c.weight' has shape [3, 2] and 3 groups; its leader 'a.weight' has [4, 6] and 4",
        ),
        (CONV, {**FILTERS, "group_dependency": "leader"}, "group_dependency", "must be 'Leader', got 'leader'"),
        (
            CONV,
            {**FILTERS, "group_type": "Cols"},
            "group_type",
            "must be '3D', 'Filters', 'Channels', 'Rows' or 'Blocks'",
        ),
        (CONV, {**FILTERS, "desired_sparsity": 1.5}, "desired_sparsity", "must be less than or equal to 1, got 1.5"),
        (CONV, {**FILTERS, "desired_sparsity": 50}, "desired_sparsity", "must be less than or equal to 1, got 50"),
        (CONV, {**FILTERS, "group_size": 0}, "group_size", "must be greater than or equal to 1, got 0"),
        (CONV, {**FILTERS, "rounding_fn": "math.floor"}, "rounding_fn", "must be 'floor', 'ceil' or 'round'"),
        (CONV, {**FILTERS, "noise": 2}, "noise", "must be less than or equal to 1, got 2"),
        (CONV, {**FILTERS, "sparsity": 0.5}, "sparsity", "has no argument 'sparsity'"),
        (CONV, {"group_type": "Filters"}, "", "needs 'desired_sparsity' (float)"),
        (
            CONV,
            {"group_type": "Filters", "initial_sparsity": 0.5, "final_sparsity": 0.25},
            "final_sparsity",
            "must be above initial_sparsity 0.5, got 0.25",
        ),
        (
            CONV,
            {"group_type": "Filters", "initial_sparsity": 0, "final_sparsity": 0.5, "curve": [0, 0.5]},
            "curve[1]",
            "must end with 1, where final_sparsity is reached, got 0.5",
        ),
        (
            CONV,
            {"group_type": "Filters", "initial_sparsity": 0, "final_sparsity": 0.5, "curve": "cosine"},
            "curve",
            "must be 'cubic', 'linear', 'exponential' or 'one-shot'",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(layer: nn.Module, keys: dict[str, Any], path: str, message: str):
    net = nn.Module()
    net.a, net.c = layer, nn.Linear(2, 3)
    with pytest.raises(ScheduleError) as error:
        scheduler(net, **keys)
    (problem,) = error.value.problems
    assert (problem.path, message in problem.message) == (f"pruners.ranked.{path}".rstrip("."), True), problem


# The card


class Network(nn.Module):
    """The layers that the card's schedules name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv2(torch.relu(self.conv1(images)))).mean((2, 3)))


def test_the_cards_first_schedule_ends_where_the_card_says():
    card = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (first, *_) = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    torch.manual_seed(0)
    net = Network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    run = CompressionScheduler(Schedule.from_text(first), net, optimizer, trace=SILENT)
    images, classes = torch.randn(4, 3, 6, 6), torch.arange(4)
    for _ in run.epochs(31):
        for x, y in run.minibatches([(images, classes)] * 2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    zero = [int((~weight.flatten(1).any(1)).sum()) for weight in (net.conv1.weight, net.conv2.weight)]
    assert zero == [4, 4]
    assert [run.sparsity("conv1.weight"), run.sparsity("conv2.weight")] == [0.5, 0.5]


# The laws of every component


def test_the_class_keeps_the_laws():
    check_component(
        L1RankedStructureParameterPruner, weights=["conv?.weight"], group_type="Filters", desired_sparsity=0.5
    )


def test_the_agp_class_keeps_the_laws():
    check_component(
        L1RankedStructureParameterPruner_AGP,
        weights=["conv2.weight", "fc?.weight"],
        granularity={"dim": 0},
        initial_sparsity=0.25,
        final_sparsity=0.5,
    )
