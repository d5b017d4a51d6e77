"""Sparsity curves: where they begin and end, and how they rise between."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from oracle_replay import arrays

from prunekit import ArgumentError, Progress, Window
from prunekit.components import Context
from prunekit.components.curves import cubic, exponential, linear, one_shot, through
from prunekit.pruning import CURVES, FixedSparsity, GradualSparsity


def at(epoch: int, window: Window) -> Context:
    return Context(torch.nn.Module(), {}, Progress(epoch), window, {}, {})


def targets(curve: Any, window: Window, initial: float = 0, final: float = 0.5) -> list[float]:
    gradual = GradualSparsity(initial_sparsity=initial, final_sparsity=final, curve=curve)
    return [round(gradual.sparsity(at(epoch, window)), 6) for epoch in window.active]


# Each by its formula


def test_cubic_is_equation_1_of_zhu_and_gupta() -> None:
    final, initial, span = 0.9, 0.1, 4
    expected = [final + (initial - final) * (1 - t / span) ** 3 for t in range(span + 1)]
    assert [cubic(initial, final, t / span) for t in range(span + 1)] == expected
    assert cubic(0, 0.8, 0.5) == pytest.approx(0.7)


def test_the_reference_has_the_same_cubic_curve() -> None:
    for initial, final, start, end, frequency, epoch, target in arrays("tables")["agp"].tolist():
        gradual = GradualSparsity(initial_sparsity=initial, final_sparsity=final)
        window = Window(int(start), int(end), int(frequency))
        assert gradual.sparsity(at(int(epoch), window)) == pytest.approx(target, abs=1e-9)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ("cubic", [0, 0.289062, 0.4375, 0.492188, 0.5]),
        ("linear", [0, 0.125, 0.25, 0.375, 0.5]),
        ("exponential", [0, 0.159104, 0.292893, 0.405396, 0.5]),
        ("one-shot", [0.5] * 5),
        ([0, 0.8, 1], [0, 0.2, 0.4, 0.45, 0.5]),
        ([0.5, 1], [0.25, 0.3125, 0.375, 0.4375, 0.5]),
        ([0, 0, 0, 0, 1], [0, 0, 0, 0, 0.5]),
    ],
)
def test_the_targets_of_a_window_of_five_epochs(curve: Any, expected: list[float]) -> None:
    assert targets(curve, Window(2, 7)) == expected


def test_exponential_takes_the_same_fraction_of_what_is_left_at_each_step() -> None:
    kept = [1 - exponential(0.2, 0.9, t / 5) for t in range(6)]
    assert [after / before for before, after in pairwise(kept)] == pytest.approx([0.125**0.2] * 5)


def test_a_curve_of_ones_own_goes_through_its_shares_and_straight_between() -> None:
    curve = through([0, 0.5, 0.5, 1])
    assert [curve(0, 1, t / 6) for t in range(7)] == pytest.approx([0, 0.25, 0.5, 0.5, 0.5, 0.75, 1])


# Windows


def test_the_last_active_epoch_reaches_the_final_sparsity_whatever_the_frequency() -> None:
    assert targets("linear", Window(0, 8, 3)) == [0, 0.25, 0.5], "epochs 0, 3 and 6"


def test_listed_epochs_span_the_curve_by_their_distance() -> None:
    assert targets("linear", Window(epochs=[2, 3, 6])) == [0, 0.125, 0.5]


def test_one_active_epoch_means_the_final_sparsity_at_once() -> None:
    assert [targets(name, Window(3, 4)) for name in CURVES] == [[0.5]] * len(CURVES)


def test_a_fixed_sparsity_is_the_same_in_every_epoch() -> None:
    fixed = FixedSparsity(desired_sparsity=0.3)
    assert [fixed.sparsity(at(epoch, Window(0, 4))) for epoch in range(4)] == [0.3] * 4


# What is refused


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"initial_sparsity": 0.5, "final_sparsity": 0.5},
            "final_sparsity: must be above initial_sparsity 0.5, got 0.5",
        ),
        (
            {"initial_sparsity": 0.5, "final_sparsity": 0.4},
            "final_sparsity: must be above initial_sparsity 0.5, got 0.4",
        ),
        (
            {"initial_sparsity": 0, "final_sparsity": 1, "curve": "exponential"},
            "curve: exponential never prunes all: a fraction of what is left always leaves something",
        ),
        (
            {"initial_sparsity": 0, "final_sparsity": 1, "curve": [0, 0.9]},
            "curve.1: must end with 1, where final_sparsity is reached, got 0.9",
        ),
    ],
)
def test_a_curve_that_does_not_rise_or_arrive_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        GradualSparsity(**keys)
    assert f"{'.'.join(map(str, error.value.keys))}: {error.value.message}" == message


# For any ends

ENDS = st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)).filter(lambda ends: ends[0] < ends[1])
SHAPES = st.sampled_from([*CURVES]) | st.lists(st.floats(0, 1), min_size=1, max_size=4).map(lambda s: [*sorted(s), 1])


@given(ENDS, SHAPES, st.lists(st.floats(0, 1), min_size=2, max_size=20).map(sorted))
def test_every_curve_rises_between_its_ends_and_meets_the_last_exactly(
    ends: tuple[float, float], curve: Any, fractions: list[float]
) -> None:
    initial, final = ends
    gradual = GradualSparsity(initial_sparsity=initial, final_sparsity=final, curve=curve)
    values = [gradual.at(fraction) for fraction in fractions]
    slack = 1e-12
    assert all(initial - slack <= value <= final + slack for value in values)
    assert all(after >= before - slack for before, after in pairwise(values))
    assert gradual.at(1) == final
    assert curve in ("one-shot",) or not isinstance(curve, str) or gradual.at(0) == initial


@given(ENDS)
def test_the_named_curves_lie_in_order(ends: tuple[float, float]) -> None:
    halfway = [curve(*ends, 0.5) for curve in (linear, exponential, cubic, one_shot)]
    assert halfway[0] <= halfway[1] + 1e-12
    assert halfway[0] < halfway[2] <= halfway[3]
