"""Selection over several tensors together, and N of M: exact counts, ties by order, every type."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from prunekit.pruning import keep_n_of_m, prune_smallest_together
from prunekit.pruning.selection import _by_order, _on_device

TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FEW_VALUES = st.sampled_from([-1.5, -0.0, 0.0, 0.5, 0.5, 2.0, 3.25, 1e-30])
TENSORS = st.lists(st.lists(FEW_VALUES, max_size=12), min_size=1, max_size=5)


def gone(masks: list[Tensor]) -> list[list[int]]:
    """The indices that masks prune, flat, tensor by tensor."""
    return [(~mask).reshape(-1).nonzero().reshape(-1).tolist() for mask in masks]


def lowest(tensors: list[Tensor], count: int, most: list[int] | None = None) -> list[list[int]]:
    """The same by comparing everything with everything: the smallest first, each where there is still room."""
    pruned: list[list[int]] = [[] for _ in tensors]
    order = sorted((abs(v), t, i) for t, w in enumerate(tensors) for i, v in enumerate(w.reshape(-1).tolist()))
    for _, tensor, index in order:
        if sum(map(len, pruned)) < count and (most is None or len(pruned[tensor]) < most[tensor]):
            pruned[tensor].append(index)
    return [sorted(indices) for indices in pruned]


# Together


def test_the_smallest_go_wherever_they_are() -> None:
    tensors = [torch.tensor([[4.0, -1.0], [3.0, 6.0]]), torch.tensor([2.0, -5.0]), torch.tensor(-0.5)]
    assert gone(prune_smallest_together(tensors, 3)) == [[1], [0], [0]]
    assert [mask.shape for mask in prune_smallest_together(tensors, 3)] == [(2, 2), (2,), ()]


@pytest.mark.parametrize(("count", "pruned"), [(1, [[0], []]), (3, [[0, 1], [0]]), (4, [[0, 1], [0, 1]])])
def test_of_equal_ones_those_of_the_first_tensor_go_first(count: int, pruned: list[list[int]]) -> None:
    assert gone(prune_smallest_together([torch.ones(2), -torch.ones(3)], count)) == pruned


@pytest.mark.parametrize(("count", "kept"), [(-1, 3), (0, 3), (3, 0), (4, 0)])
def test_none_or_all_of_them_go_where_so_many_are_asked_for(count: int, kept: int) -> None:
    masks = prune_smallest_together([torch.ones(2), torch.ones(1)], count)
    assert sum(int(mask.sum()) for mask in masks) == kept


def test_no_tensor_at_all_is_no_mask_at_all() -> None:
    assert prune_smallest_together([], 0) == []
    assert prune_smallest_together([], 0, most=[]) == []


def test_what_a_tensor_may_not_lose_goes_elsewhere() -> None:
    small, large = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0])
    assert gone(prune_smallest_together([small, large], 4)) == [[0, 1, 2], [0]]
    assert gone(prune_smallest_together([small, large], 4, most=[2, 3])) == [[0, 1], [0, 1]]
    assert gone(prune_smallest_together([small, large], 4, most=[1, 3])) == [[0], [0, 1, 2]]
    with pytest.raises(ValueError, match="4 of 6 can't go: at most 3 may"):
        prune_smallest_together([small, large], 4, most=[1, 2])


def test_tensors_of_different_types_are_compared_by_value() -> None:
    tensors = [torch.tensor([1.0, 3.0]).half(), torch.tensor([2.0, 4.0]).double(), torch.tensor([1.5]).bfloat16()]
    assert gone(prune_smallest_together(tensors, 3)) == [[0], [0], [0]]


def test_memory_in_another_order_changes_nothing() -> None:
    weight = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    plain = prune_smallest_together([weight, weight[:2]], 200)
    other = prune_smallest_together([weight.to(memory_format=torch.channels_last), weight[:2].mT.contiguous().mT], 200)
    assert gone(plain) == gone(other)


@settings(deadline=None)
@given(TENSORS, st.floats(0, 1), st.sampled_from(TYPES), st.data())
def test_exactly_the_lowest_go_within_every_limit(
    values: list[list[float]], sparsity: float, dtype: torch.dtype, data: st.DataObject
) -> None:
    tensors = [torch.tensor(row, dtype=dtype) for row in values]
    count = int(sparsity * sum(map(len, values)))
    assert gone(prune_smallest_together(tensors, count)) == lowest(tensors, count)
    most = [data.draw(st.integers(0, len(row))) for row in values]
    count = min(count, sum(most))
    assert gone(prune_smallest_together(tensors, count, most)) == lowest(tensors, count, most)


@settings(deadline=None)
@given(TENSORS, st.floats(0, 1))
def test_one_after_the_other_they_are_one_long_tensor(values: list[list[float]], sparsity: float) -> None:
    tensors = [torch.tensor(row) for row in values]
    flat, count = torch.cat(tensors), int(sparsity * sum(map(len, values)))
    if 0 < count < flat.numel():
        masks = torch.cat(prune_smallest_together(tensors, count))
        assert torch.equal(masks, _on_device(flat.abs(), count)), "the path for accelerators"


# N of M


def test_of_each_four_weights_the_two_largest_stay() -> None:
    weights = torch.tensor([[4.0, -1.0, 2.0, -3.0, 0.1, 0.2, -0.4, 0.3]])
    assert keep_n_of_m(weights, 2, 4, dim=1).int().tolist() == [[1, 0, 0, 1, 0, 0, 1, 1]]


def test_the_dimension_says_which_weights_follow_each_other() -> None:
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert keep_n_of_m(weights, 1, 2, dim=0).tolist() == [[False, False], [True, True]]
    for dim in (1, -1):
        assert keep_n_of_m(weights, 1, 2, dim).tolist() == [[False, True], [False, True]]


def test_of_equal_ones_in_a_group_the_first_go() -> None:
    assert keep_n_of_m(torch.ones(1, 8), 2, 4, dim=1).int().tolist() == [[0, 0, 1, 1, 0, 0, 1, 1]]
    assert keep_n_of_m(torch.tensor([[2.0, 1.0, -1.0, 1.0]]), 2, 4, dim=1).int().tolist() == [[1, 0, 0, 1]]


def test_a_dimension_that_does_not_divide_is_refused_with_the_shape() -> None:
    with pytest.raises(ValueError, match=r"has shape \[2, 6\]: 4 does not divide its dimension 1"):
        keep_n_of_m(torch.ones(2, 6), 2, 4, dim=1)


def test_tensors_without_elements_have_masks_without_elements() -> None:
    assert keep_n_of_m(torch.ones(0, 4), 2, 4, dim=1).shape == (0, 4)
    assert keep_n_of_m(torch.ones(4, 0), 2, 4, dim=1).shape == (4, 0)


def test_weights_that_hold_nan_are_refused() -> None:
    nan = torch.tensor([[1.0, -float("nan"), 2.0, 3.0]])
    with pytest.raises(ValueError, match="weights hold NaN"):
        keep_n_of_m(nan, 2, 4, dim=1)
    with pytest.raises(ValueError, match="weights hold NaN"):
        prune_smallest_together([torch.ones(3), nan], 2)
    infinite = torch.tensor([[float("inf"), 1.0, -float("inf"), 2.0]])
    assert keep_n_of_m(infinite, 2, 4, dim=1).tolist() == [[True, False, True, False]]


SHAPES = [(2, 8), (8, 2), (4, 4, 3), (2, 4, 3, 3), (8, 1, 1), (2, 48), (2, 3000)]


@settings(deadline=None)
@given(st.sampled_from(SHAPES), st.sampled_from(TYPES), st.sampled_from([1, 2, 3, 4, 8, 24, 40]), st.data())
def test_each_group_keeps_exactly_its_n_largest_by_either_way(
    shape: tuple[int, ...], dtype: torch.dtype, m: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    weights = (torch.randn(shape, generator=generator) * 2).round().to(dtype)
    n = data.draw(st.integers(0, m))
    for dim in [d for d, size in enumerate(shape) if size % m == 0]:
        mask = keep_n_of_m(weights, n, m, dim)
        assert torch.equal(mask, _by_order(weights, n, m, dim)), "by comparison and by sorting"
        groups = mask.unflatten(dim, (-1, m)).movedim(dim + 1, -1).reshape(-1, m)
        assert groups.sum(1).tolist() == [n] * (math.prod(shape) // m)
        values = weights.unflatten(dim, (-1, m)).movedim(dim + 1, -1).reshape(-1, m)
        for row, kept in zip(values[:8].tolist(), groups[:8].tolist(), strict=True):
            order = sorted(range(m), key=lambda i: (abs(row[i]), i))
            assert kept == [i in order[m - n :] for i in range(m)]
