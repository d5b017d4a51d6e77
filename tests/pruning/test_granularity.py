"""Granularity: which weights of a tensor belong together, counted, measured and spread back."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from prunekit import Progress, Window
from prunekit.components import Context
from prunekit.pruning import Groups, Tiles, Units, check_group_types, fitting, granularities, groups_of
from prunekit.pruning.granularity import GRANULARITIES, granularity_of


def members(groups: Groups) -> list[list[int]]:
    """The flat indices of each group's elements."""
    of_each = groups.spread(torch.arange(groups.number)).reshape(-1)
    return [(of_each == group).nonzero().reshape(-1).tolist() for group in range(groups.number)]


def counted(*shape: int) -> Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)


# Which weights


@pytest.mark.parametrize(
    ("setting", "shape", "expected"),
    [
        ({"dim": 0}, (2, 3), [[0, 1, 2], [3, 4, 5]]),
        ({"dim": 1}, (2, 3), [[0, 3], [1, 4], [2, 5]]),
        ({"dim": 0}, (3,), [[0], [1], [2]]),
        ({"dim": 2}, (1, 2, 2), [[0, 2], [1, 3]]),
        ({"dim": 0, "size": 2}, (4, 2), [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ({"dim": 1, "size": 2}, (2, 4), [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ({"dim": 0, "heads": 2}, (6,), [[0, 1, 2], [3, 4, 5]]),
        ({"dim": 0, "parts": 2}, (6,), [[0, 3], [1, 4], [2, 5]]),
        ({"dim": 0, "parts": 2, "size": 2}, (8,), [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ({"dim": 0, "parts": 3, "heads": 2}, (12,), [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]),
        ({"dim": 1, "parts": 2}, (2, 4), [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ({"shape": [2]}, (4,), [[0, 1], [2, 3]]),
        ({"shape": [1, 2]}, (2, 4), [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ({"shape": [2, 2]}, (2, 4), [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ({"shape": [2]}, (2, 3), [[0, 3], [1, 4], [2, 5]]),
        ({"shape": [2, 1, 1, 1]}, (4, 1), [[0, 1], [2, 3]]),
        ("2D", (2, 1, 1, 2), [[0, 1], [2, 3]]),
        ("3D", (2, 2, 1, 1), [[0, 1], [2, 3]]),
        ("Filters", (2, 1, 2), [[0, 1], [2, 3]]),
        ("Filters", (2, 1, 1, 1, 2), [[0, 1], [2, 3]]),
        ("4D", (2, 1, 1, 2), [[0, 1, 2, 3]]),
        ("Channels", (2, 2, 1, 1), [[0, 2], [1, 3]]),
        ("Rows", (2, 2), [[0, 1], [2, 3]]),
        ("Cols", (2, 2), [[0, 2], [1, 3]]),
        ("Elements", (2, 2), [[0], [1], [2], [3]]),
        ("Elements", (), [[0]]),
    ],
)
def test_the_groups_of_a_tensor(setting: Any, shape: tuple[int, ...], expected: list[list[int]]) -> None:
    groups = granularity_of(setting).groups(torch.empty(shape))
    assert members(groups) == expected
    assert (groups.number, groups.size) == (len(expected), len(expected[0]))


def test_blocks_of_two_filters_and_four_channels() -> None:
    """Repetitions are filters and depth is channels: not eight channels of one filter, as elsewhere."""
    groups = Tiles([2, 4, 1, 1]).groups(torch.empty(4, 8, 1, 1))
    assert members(groups)[0] == [0, 1, 2, 3, 8, 9, 10, 11]
    assert (groups.number, groups.size) == (4, 8)


def test_units_are_the_gates_of_an_lstm_and_the_heads_of_attention() -> None:
    lstm, attention = torch.nn.LSTM(2, 3), torch.nn.MultiheadAttention(4, 2)
    hidden = Units(0, parts=4).groups(lstm.weight_ih_l0)
    assert members(hidden)[0] == [0, 1, 6, 7, 12, 13, 18, 19], "rows 0, 3, 6 and 9"
    heads = Units(0, heads=2, parts=3).groups(attention.in_proj_weight)
    rows = sorted({index // 4 for index in members(heads)[0]})
    assert rows == [0, 1, 4, 5, 8, 9], "queries, keys and values of the first head"


# What is measured


def test_the_norms_of_rows() -> None:
    rows = Units(0).groups(torch.empty(2, 2))
    weight = torch.tensor([[3.0, -4.0], [0.0, -2.0]])
    assert rows.l1(weight).tolist() == [7, 2]
    assert rows.l2(weight).tolist() == [5, 2]
    assert rows.mean_abs(weight).tolist() == [3.5, 1]
    assert rows.max_abs(weight).tolist() == [4, 2]
    assert rows.sum(weight).tolist() == [-1, -2]


def test_single_weights_are_groups_too() -> None:
    elements = granularity_of("Elements").groups(torch.empty(2))
    weight = torch.tensor([3.0, -4.0])
    measured = (elements.l1, elements.l2, elements.mean_abs, elements.max_abs)
    assert [measure(weight).tolist() for measure in measured] == [[3, 4]] * 4
    assert elements.sum(weight).tolist() == [3, -4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_measures_are_in_32_bits_where_weights_are_in_16(dtype: torch.dtype) -> None:
    """In bfloat16 a sum of 1000 stops at 256, and both rows would tie."""
    weight = torch.ones(2, 1001, dtype=dtype)
    weight[0, 0] = 0
    rows = Units(0).groups(weight)
    assert rows.l1(weight).tolist() == [1000, 1001]
    assert rows.l1(weight).dtype == rows.l2(weight).dtype == rows.sum(weight).dtype == torch.float32


def test_tensors_without_elements_have_groups_without_elements_or_none() -> None:
    empty, nothing = torch.empty(0, 3), torch.empty(2, 0)
    assert Units(0).groups(empty).l2(empty).tolist() == []
    assert Units(0).groups(nothing).mean_abs(nothing).tolist() == [0, 0]
    assert Units(0).groups(nothing).max_abs(nothing).tolist() == [0, 0]


# What a tensor has not


@pytest.mark.parametrize(
    ("setting", "shape", "message"),
    [
        ({"dim": 2}, (2, 3), "has shape [2, 3] and no dimension 2"),
        ({"dim": 0}, (), "has shape [] and no dimension 0"),
        ({"dim": 0, "size": 2}, (3, 4), "has shape [3, 4]: its dimension 0 is not divided into units of 2"),
        ({"dim": 1, "heads": 3}, (3, 4), "has shape [3, 4]: its dimension 1 is not divided into 3 heads"),
        ({"dim": 0, "heads": 8}, (4,), "has shape [4]: its dimension 0 is not divided into 8 heads"),
        ({"dim": 0, "parts": 4}, (6,), "has shape [6]: its dimension 0 is not divided into units of 1 in 4 parts"),
        ({"dim": 0, "size": 2, "heads": 2}, (4,), "has either units of a size or a number of heads, not both"),
        ({"shape": [2, 2]}, (4, 3), "has shape [4, 3], which tiles of shape [2, 2] do not cover"),
        ({"shape": [2, 2]}, (4,), "has shape [4], which tiles of shape [2, 2] do not cover"),
        ({"shape": [1]}, (), "has shape [], which tiles of shape [1] do not cover"),
        ("Rows", (2, 2, 2), "has shape [2, 2, 2] and no groups 'Rows'"),
        ("2D", (2, 2), "has shape [2, 2] and no groups '2D'"),
        ("Filters", (2, 2), "has shape [2, 2] and no groups 'Filters'"),
    ],
)
def test_what_a_tensor_has_not_is_refused_with_its_shape(setting: Any, shape: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^has ") as error:
        granularity_of(setting).groups(torch.empty(shape))
    assert str(error.value) == message


def test_names_may_be_joined_and_an_unknown_part_is_refused() -> None:
    assert [named.name for named in granularities("Rows+Cols")] == ["Rows", "Cols"]
    assert granularity_of("3D") is GRANULARITIES["3D"]
    with pytest.raises(ValueError, match="no granularity is called 'Columns'; known are Elements, 2D, 3D"):
        granularities("Rows+Columns")


# For any tensor


@st.composite
def grouped(draw: st.DrawFn) -> tuple[Tensor, Groups]:
    """A tensor that some granularity fits."""
    units = draw(st.booleans())
    if units:
        size, parts, number = (draw(st.integers(1, 3)) for _ in range(3))
        shape = draw(st.lists(st.integers(1, 3), min_size=0, max_size=2))
        dim = draw(st.integers(0, len(shape)))
        shape.insert(dim, size * parts * number)
        tensor = counted(*shape)
        by_size = Units(dim, size, parts=parts)
        chosen = Units(dim, heads=number, parts=parts) if draw(st.booleans()) else by_size
        return tensor, chosen.groups(tensor)
    tile = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    tensor = counted(*(edge * draw(st.integers(1, 3)) for edge in tile))
    return tensor, Tiles(tile).groups(tensor)


@settings(deadline=None)
@given(grouped())
def test_every_weight_is_in_one_group_and_all_groups_have_the_same_size(case: tuple[Tensor, Groups]) -> None:
    tensor, groups = case
    found = members(groups)
    assert sorted(index for group in found for index in group) == list(range(tensor.numel()))
    assert {len(group) for group in found} == {groups.size}
    assert len(found) == groups.number


@settings(deadline=None)
@given(grouped())
def test_measuring_undoes_spreading(case: tuple[Tensor, Groups]) -> None:
    tensor, groups = case
    values = torch.arange(1.0, groups.number + 1)
    spread = groups.spread(values)
    assert spread.shape == tensor.shape
    for measured in (groups.max_abs(spread), groups.mean_abs(spread), groups.sum(spread) / groups.size):
        assert torch.allclose(measured, values)
    assert torch.equal(groups.spread(values > 1), spread > 1)


@settings(deadline=None)
@given(grouped())
def test_measures_are_those_of_each_groups_elements(case: tuple[Tensor, Groups]) -> None:
    tensor, groups = case
    flat = (tensor - tensor.mean()).round().reshape(-1)
    elements = [flat[group] for group in members(groups)]
    weight = flat.reshape(tensor.shape)
    assert groups.l1(weight).tolist() == [float(e.abs().sum()) for e in elements]
    assert groups.max_abs(weight).tolist() == [float(e.abs().max()) for e in elements]
    assert groups.sum(weight).tolist() == [float(e.sum()) for e in elements]
    assert torch.allclose(groups.l2(weight), torch.stack([e.square().sum().sqrt() for e in elements]))


def test_a_tensor_has_the_groups_that_fit_its_dimensions():
    names = ["2D", "Filters", "Rows", "Cols", "Rows+Cols", "Channels+4D"]
    assert fitting(torch.empty(2, 3), names) == ["Rows", "Cols", "Rows+Cols"]
    assert fitting(torch.empty(2, 3, 1, 1), names) == ["2D", "Filters", "Channels+4D"]
    assert fitting(torch.empty(2), names) == []
    rows, columns = groups_of(torch.empty(2, 3), "Rows+Cols")
    assert (rows.number, columns.number) == (2, 3)


def test_tensors_without_groups_of_their_type_are_refused_at_their_own_keys() -> None:
    """What lasso and structure pruners refuse, in their words."""
    net = nn.ModuleDict({"up": nn.ConvTranspose2d(2, 3, 1), "fc": nn.Linear(2, 3)})
    parameters = dict(net.named_parameters())
    types = {"up.weight": "3D", "up.bias": "3D", "fc.weight": "4D", "fc.bias": "Elements"}
    keys: dict[str, tuple[str | int, ...]] = {name: ("regims", name) for name in types}
    context = Context(net, {}, Progress(0), Window(0, 1), {}, keys)
    assert list(map(str, check_group_types(parameters, types, ["2D", "Rows", "Cols"], context))) == [
        "regims.up.weight: 'up.weight' belongs to a ConvTranspose2d: its dimension 0 is inputs, "
        "and '3D' takes it for outputs",
        "regims.up.bias: 'up.bias' has shape [3] and no groups '3D'; a vector has no groups at all",
        "regims.fc.weight: 'fc.weight' has shape [3, 2] and no groups '4D'; it has 'Rows', 'Cols'",
    ]
