"""Budgets over tensors, and masks that move while the number of kept weights stays."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from prunekit import Progress
from prunekit.pruning import budgets, draws, drop_lowest, grow_highest, random_mask

SHAPES = {"conv": (16, 8, 3, 3), "fc": (10, 40), "bias": (10,)}  # 1152 + 400 + 10 = 1562 weights


# Budgets


def test_uniform_prunes_the_same_fraction_of_each_tensor_rounded_down():
    assert budgets(SHAPES, 0.75, "uniform") == {"conv": 288, "fc": 100, "bias": 3}


def test_erdos_renyi_gives_in_proportion_to_inputs_plus_outputs_times_the_kernel():
    # ε (16 + 8) · 9 = 216 ε, ε (10 + 40) = 50 ε, 10 ε; 1562 - floor(0.9 · 1562) = 157 = 276 ε.
    assert budgets(SHAPES, 0.9, "erdos-renyi") == {"conv": 123, "fc": 28, "bias": 6}
    assert [round(157 * share / 276, 2) for share in (216, 50, 10)] == [122.87, 28.44, 5.69]


def test_erdos_renyi_kernel_gives_in_proportion_to_the_sum_of_all_dimensions():
    # 30 ε, 50 ε and 10 ε; 1562 - floor(0.96 · 1562) = 63 = 90 ε.
    assert budgets(SHAPES, 0.96, "erdos-renyi-kernel") == {"conv": 21, "fc": 35, "bias": 7}


def test_a_tensor_whose_share_is_too_large_stays_dense_and_the_others_share_the_rest():
    # 157 = 90 ε would keep 17 of 10 biases: they are dense, and 147 = 80 ε.
    assert budgets(SHAPES, 0.9, "erdos-renyi-kernel") == {"conv": 55, "fc": 92, "bias": 10}


@pytest.mark.parametrize(("sparsity", "kept"), [(0, [1152, 400, 10]), (1, [0, 0, 0])])
def test_at_the_ends_all_or_none_are_kept(sparsity, kept):
    for distribution in ("uniform", "erdos-renyi", "erdos-renyi-kernel"):
        assert list(budgets(SHAPES, sparsity, distribution).values()) == kept


def test_empty_and_scalar_tensors_take_part():
    shapes = {"empty": (0, 3), "none": (0,), "scalar": (), "fc": (4, 4)}
    assert budgets(shapes, 0.5, "erdos-renyi") == {"empty": 0, "none": 0, "scalar": 1, "fc": 8}
    assert budgets({}, 0.5, "erdos-renyi") == {}


shapes = st.dictionaries(st.text("abc", min_size=1, max_size=2), st.lists(st.integers(0, 9), max_size=4), max_size=6)


@given(shapes, st.floats(0, 1), st.sampled_from(["erdos-renyi", "erdos-renyi-kernel"]))
def test_the_total_is_exact_and_no_tensor_keeps_more_than_it_has(tensors, sparsity, distribution):
    kept = budgets(tensors, sparsity, distribution)
    sizes = {name: math.prod(shape) for name, shape in tensors.items()}
    assert list(kept) == list(tensors)
    assert sum(kept.values()) == sum(sizes.values()) - math.floor(sparsity * sum(sizes.values()))
    assert all(0 <= kept[name] <= sizes[name] for name in sizes)


@given(shapes, st.floats(0, 1))
def test_densities_are_in_proportion_to_shares_but_for_rounding_and_dense_tensors(tensors, sparsity):
    kept = budgets(tensors, sparsity, "erdos-renyi-kernel")
    sparse = {n: s for n, s in tensors.items() if 0 < kept[n] < math.prod(s)}
    shares = {n: sum(s) if len(s) > 1 else math.prod(s) for n, s in sparse.items()}
    for one in sparse:
        for other in sparse:
            # kept = ε · share, each rounded by less than 1
            assert (kept[one] - 1) * shares[other] < (kept[other] + 1) * shares[one]


# Dropping and growing


def test_the_lowest_of_the_kept_ones_go_of_equal_ones_the_first():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    scores = torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 5.0]])
    assert drop_lowest(mask, scores, 0.5).tolist() == [[True, False, False], [False, True, True]]
    assert drop_lowest(mask, scores, 0.39).tolist() == [[True, False, False], [True, True, True]]


def test_the_highest_of_the_pruned_ones_come_until_so_many_are_kept_of_equal_ones_the_last():
    mask = torch.tensor([[True, False, False], [False, False, False]])
    scores = torch.tensor([[9.0, 1.0, 3.0], [3.0, 3.0, 0.0]])
    assert grow_highest(mask, scores, 3).tolist() == [[True, False, False], [True, True, False]]
    assert grow_highest(mask, scores, 1).tolist() == grow_highest(mask, scores, 0).tolist() == mask.tolist()
    assert grow_highest(mask, scores, 99).all()


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3), st.integers(0, 3)), max_size=40), st.floats(0, 1))
def test_dropping_and_growing_as_many_keeps_the_budget(units, fraction):
    mask = torch.tensor([keep for keep, _, _ in units], dtype=torch.bool)
    drop, grow = (torch.tensor([unit[place] for unit in units], dtype=torch.float32) for place in (1, 2))
    left = drop_lowest(mask, drop, fraction)
    assert not (left & ~mask).any()
    assert int(mask.sum()) - int(left.sum()) == math.floor(fraction * int(mask.sum()))
    grown = grow_highest(left, grow, int(mask.sum()))
    assert bool((left <= grown).all()) and grown.sum() == mask.sum()
    # Whoever is out scores no higher than whoever came.
    came, out = grow[grown & ~left], grow[~grown]
    assert not (len(came) and len(out)) or came.min() >= out.max()


# Draws


def test_draws_depend_on_seed_step_and_parameter_and_on_nothing_else():
    like = torch.zeros(3, 4)
    one = draws(like, 0, Progress(2, 5, 9), "fc1.weight")
    torch.manual_seed(123)
    assert torch.equal(one, draws(like, 0, Progress(2, 5, 100), "fc1.weight"))
    others = [(1, Progress(2, 5), "fc1.weight"), (0, Progress(3, 5), "fc1.weight"), (0, Progress(2, 6), "fc1.weight")]
    for other in [*others, (0, Progress(2, 5), "fc2.weight")]:
        assert not torch.equal(one, draws(like, *other))


def test_a_random_mask_keeps_exactly_so_many_each_with_the_same_chance():
    counts = torch.zeros(8)
    for seed in range(2000):
        mask = random_mask(draws(torch.zeros(8), seed, Progress(0), "w"), 3)
        assert mask.sum() == 3
        counts += mask
    assert bool(((counts / 2000 - 3 / 8).abs() < 0.04).all())  # 3.7 standard deviations
