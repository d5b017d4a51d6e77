"""DoReFa: values and gradients small enough to check by eye, what every key changes, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SILENT, different_values, quantized_epochs, quantizer_context, quantizer_problem
from hypothesis import given, settings, strategies as st
from prunekit_dorefa_quantizer import DorefaQuantizer
from torch import nn

from prunekit import CompressionScheduler
from prunekit.testing import check_component

CARD = Path(__file__).parents[1] / "README.md"


# Weights


def weights_of(bits: int, *weights: float) -> list[float]:
    return DorefaQuantizer().quantize("a", torch.tensor(weights), quantizer_context(bits)).tolist()


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (1, [-0.75, -0.75, 0.75, 0.75]),  # sign(w) · mean|w|
        (2, [-1, -1 / 3, 1 / 3, 1]),
        (3, [-1, -1 / 7, 3 / 7, 1]),
    ],
)
def test_weights_are_at_the_levels_of_equations_7_and_9(bits: int, expected: list[float]) -> None:
    # tanh(w) / max|tanh(w)| is -1, -0.11, 0.32 and 0.88
    assert weights_of(bits, -1.5, -0.1, 0.3, 1.1) == pytest.approx(expected, abs=1e-6)


def test_the_size_of_the_weights_does_not_count_and_zero_is_no_level() -> None:
    assert weights_of(2, -1e-3, 0, 1e-3) == pytest.approx([-1, 1 / 3, 1])  # 0 is half way; to even means up
    assert weights_of(2, 0, 0) == pytest.approx([1 / 3, 1 / 3])
    assert weights_of(1, 0.0, -2.0) == [1, -1]


@settings(deadline=None)  # the first call of torch is slow
@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=40), st.integers(2, 8))
def test_there_are_at_most_2_to_the_bits_levels_the_order_stays_and_rounding_twice_is_rounding_once(
    weights: list[float], bits: int
) -> None:
    given = torch.tensor(weights)
    got = DorefaQuantizer().quantize("a", given, quantizer_context(bits))
    steps = (got + 1) / 2 * (2**bits - 1)
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    assert got.abs().max() <= 1
    assert different_values(got) <= 2**bits
    order = given.argsort()
    assert (got[order].diff() >= 0).all()


def test_the_gradient_flows_through_tanh_and_the_largest_weight() -> None:
    weight = torch.tensor([0.5, -1.0, 1.0, 0.2], dtype=torch.float64, requires_grad=True)
    upstream = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    DorefaQuantizer().quantize("a", weight, quantizer_context(3)).backward(upstream)
    straight = weight.detach().clone().requires_grad_()
    squashed = straight.tanh()
    (squashed / squashed.abs().amax()).backward(upstream)  # equation 9 without its rounding
    torch.testing.assert_close(weight.grad, straight.grad)


def test_a_tensor_of_zeros_has_the_gradient_of_the_values_themselves() -> None:
    weight = torch.zeros(3, requires_grad=True)
    DorefaQuantizer().quantize("a", weight, quantizer_context(4)).backward(torch.tensor([1.0, 2.0, 3.0]))
    assert weight.grad.tolist() == [1, 2, 3]


def test_of_one_bit_the_gradient_goes_straight_through() -> None:
    weight = torch.tensor([0.5, -3.0], requires_grad=True)
    DorefaQuantizer().quantize("a", weight, quantizer_context(1)).backward(torch.tensor([1.0, 2.0]))
    assert weight.grad.tolist() == [1, 2]


# Activations


def test_activations_are_clipped_to_1_and_rounded() -> None:
    given = torch.tensor([0.0, 0.1, 0.4, 0.9, 5.0, -1.0], requires_grad=True)
    got = DorefaQuantizer().quantize_activation("a", given, quantizer_context(2))
    assert got.tolist() == torch.tensor([0, 0, 1 / 3, 1, 1, 0]).tolist()
    got.sum().backward()
    assert given.grad.tolist() == [1, 1, 1, 1, 0, 0]


# Keys


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"bits_weights": 1}, (2, False, False)),
        ({"bits_weights": 2}, (4, False, False)),
        ({"bits_bias": 1}, (12, True, False)),
        ({"bits_activations": 1}, (12, False, True)),
        ({"bits_weights": 4, "bits_overrides": {"0": {"wts": 1}}}, (2, False, False)),
        ({"bits_weights": 4, "overrides": {"0": {"bits_weights": 1}}}, (2, False, False)),
    ],
)
def test_each_key_changes_what_is_quantized(keys: dict[str, Any], expected: tuple[int, bool, bool]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    bias, x = model[0].bias.detach().clone(), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    policy = {"quantizer": {"instance_name": "q"}, "epochs": [0]}
    schedule = {"version": 1, "quantizers": {"q": {"class": "DorefaQuantizer", **keys}}, "policies": [policy]}
    CompressionScheduler.from_dict(schedule, model, trace=SILENT).on_epoch_begin(0)
    out = set(model(x).unique().tolist()) <= {0.0, 1.0}
    assert (different_values(model[0].weight), not torch.equal(model[0].bias, bias), out) == expected


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"bits_weights": 0}, "quantizers.q.bits_weights: must be greater than or equal to 1, got 0"),
        ({"bits_weights": True}, "quantizers.q.bits_weights: must be a valid integer, got True"),
        ({}, "quantizers.q.class: DorefaQuantizer quantizes nothing: it is given no bits for what there is"),
        (
            {"bits_weights": 4, "bits_overrides": {"2": {"wts": 4}}},
            "quantizers.q.bits_overrides.2: '2' matches no module that can be quantized",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(keys: dict[str, Any], message: str) -> None:
    assert quantizer_problem("DorefaQuantizer", **keys).startswith(message)


# The card


def test_the_cards_schedule_does_what_the_card_says_to_its_end() -> None:
    seen: dict[int, list[int]] = {}

    def after(epoch: int, net: nn.Module, run: CompressionScheduler) -> None:
        layers = (net.conv1, net.conv2, net.conv3, net.fc, net.fc1)
        seen[epoch] = [different_values(layer.weight) for layer in layers]

    quantized_epochs(CARD, after)
    free = [216, 576, 128, 64, 96]
    assert seen[1] == seen[200] == free
    for epoch in (2, 100, 199):
        assert seen[epoch][0] == free[0]
        assert max(seen[epoch][1:3]) == 16
        assert max(seen[epoch][3:]) <= 256


# The laws of every component


def test_the_class_keeps_the_laws() -> None:
    check_component(DorefaQuantizer, bits_weights=4, bits_activations=4, bits_bias=4)
