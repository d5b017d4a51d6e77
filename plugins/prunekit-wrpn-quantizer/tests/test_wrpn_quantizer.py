"""WRPN: values and gradients small enough to check by eye, what every key changes, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SILENT, different_values, quantized_epochs, quantizer_context, quantizer_problem
from hypothesis import given, settings, strategies as st
from prunekit_wrpn_quantizer import WRPNQuantizer
from torch import nn

from prunekit import CompressionScheduler
from prunekit.testing import check_component

CARD = Path(__file__).parents[1] / "README.md"


# Weights


@pytest.mark.parametrize(
    ("bits", "expected"),
    [(2, [-1, 0, 0, 1, 1]), (3, [-1, -1 / 3, 1 / 3, 2 / 3, 1]), (4, [-1, -3 / 7, 1 / 7, 4 / 7, 1])],
)
def test_weights_are_clipped_to_1_and_rounded_with_one_bit_for_the_sign(bits: int, expected: list[float]) -> None:
    weight = torch.tensor([-3.0, -0.4, 0.2, 0.6, 1.1])
    assert WRPNQuantizer().quantize("a", weight, quantizer_context(bits)).tolist() == pytest.approx(expected)


def test_the_gradient_goes_straight_through_between_the_ends() -> None:
    weight = torch.tensor([-3.0, -0.4, 0.2, 1.1], requires_grad=True)
    WRPNQuantizer().quantize("a", weight, quantizer_context(4)).backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert weight.grad.tolist() == [0, 2, 3, 0]


@settings(deadline=None)  # the first call of torch is slow
@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=40), st.integers(2, 8))
def test_zero_stays_zero_the_levels_lie_alike_on_both_sides_and_rounding_twice_is_rounding_once(
    weights: list[float], bits: int
) -> None:
    weight = torch.tensor([0.0, *weights])
    once = WRPNQuantizer().quantize("a", weight, quantizer_context(bits))
    assert once[0] == 0
    assert torch.equal(-once, WRPNQuantizer().quantize("a", -weight, quantizer_context(bits)))
    torch.testing.assert_close(WRPNQuantizer().quantize("a", once, quantizer_context(bits)), once)
    steps = once * (2 ** (bits - 1) - 1)
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    assert once.abs().max() <= 1


# Activations


def test_activations_are_clipped_to_1_and_rounded() -> None:
    given = torch.tensor([0.0, 0.1, 0.4, 0.9, 5.0, -1.0], requires_grad=True)
    got = WRPNQuantizer().quantize_activation("a", given, quantizer_context(2))
    assert got.tolist() == pytest.approx([0, 0, 1 / 3, 1, 1, 0])
    got.sum().backward()
    assert given.grad.tolist() == [1, 1, 1, 1, 0, 0]


# Keys


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"bits_weights": 2}, (3, False, False)),
        ({"bits_weights": 3}, (7, False, False)),
        ({"bits_bias": 2}, (12, True, False)),
        ({"bits_activations": 1}, (12, False, True)),
        ({"bits_weights": 4, "bits_overrides": {"0": {"wts": 2}}}, (3, False, False)),
        ({"bits_weights": 4, "overrides": {"0": {"bits_weights": 2}}}, (3, False, False)),
    ],
)
def test_each_key_changes_what_is_quantized(keys: dict[str, Any], expected: tuple[int, bool, bool]) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.linspace(-1.2, 1.3, 12).reshape(3, 4))
        model[0].bias.fill_(0.2)
    bias, x = model[0].bias.detach().clone(), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    policy = {"quantizer": {"instance_name": "q"}, "epochs": [0]}
    schedule = {"version": 1, "quantizers": {"q": {"class": "WRPNQuantizer", **keys}}, "policies": [policy]}
    CompressionScheduler.from_dict(schedule, model, trace=SILENT).on_epoch_begin(0)
    out = set(model(x).unique().tolist()) <= {0.0, 1.0}
    assert (different_values(model[0].weight), not torch.equal(model[0].bias, bias), out) == expected


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"bits_weights": 1}, "quantizers.q.bits_weights: must be 2 or more: of one bit the sign leaves none ('0')"),
        ({"bits_bias": 1}, "quantizers.q.bits_bias: must be 2 or more: of one bit the sign leaves none ('0')"),
        (
            {"bits_weights": 4, "bits_overrides": {"0": {"wts": 1}}},
            "quantizers.q.bits_overrides.0.wts: must be 2 or more: of one bit the sign leaves none ('0')",
        ),
        ({"bits_weights": 33}, "quantizers.q.bits_weights: must be less than or equal to 32, got 33"),
        ({}, "quantizers.q.class: WRPNQuantizer quantizes nothing: it is given no bits for what there is"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(keys: dict[str, Any], message: str) -> None:
    assert quantizer_problem("WRPNQuantizer", **keys) == message


# The card


def test_the_cards_schedule_does_what_the_card_says_to_its_end() -> None:
    seen: dict[int, list[int]] = {}

    def after(epoch: int, net: nn.Module, run: CompressionScheduler) -> None:
        seen[epoch] = [different_values(layer.weight) for layer in (net.conv1, net.conv2, net.conv3)]
        if 2 <= epoch < 200:
            sevenths = net.conv2.weight.detach() * 7
            torch.testing.assert_close(sevenths, sevenths.round(), atol=1e-4, rtol=0)
            zeros = int((net.conv2.weight == 0).sum()) / net.conv2.weight.numel()
            assert run.sparsity("conv2.weight") == pytest.approx(zeros)

    quantized_epochs(CARD, after)
    assert seen[1] == seen[200]
    for epoch in (2, 100, 199):
        assert seen[epoch][0] == seen[1][0]
        assert max(seen[epoch][1:]) <= 15


# The laws of every component


def test_the_class_keeps_the_laws() -> None:
    check_component(WRPNQuantizer, bits_weights=4, bits_activations=4, bits_bias=4)
