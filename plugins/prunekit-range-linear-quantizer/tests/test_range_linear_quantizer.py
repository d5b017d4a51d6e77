"""Range-linear quantization: values and ranges small enough to check by eye, every mode and key, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SILENT, different_values, quantized_epochs, quantizer_context, quantizer_problem
from hypothesis import given, settings, strategies as st
from prunekit_range_linear_quantizer import QuantAwareTrainRangeLinearQuantizer, linear
from torch import nn

from prunekit import CompressionScheduler
from prunekit.testing import check_component

CARD = Path(__file__).parents[1] / "README.md"


Quantizer = QuantAwareTrainRangeLinearQuantizer


# Weights


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("ASYMMETRIC_UNSIGNED", [-1, 0, 0, 2]),  # s = 3 / 3, z = -1
        ("ASYMMETRIC_SIGNED", [-1, 0, 0, 2]),
        ("SYMMETRIC", [-4 / 3, 0, 0, 8 / 3]),  # s = 1.5 / 2; 1.5 is rounded to even
        ("SYMMETRIC_RESTRICTED", [0, 0, 0, 2]),  # s = 1 / 2
    ],
)
def test_each_mode_has_its_scale_and_zero_point(mode: Any, expected: list[float]) -> None:
    weight = torch.tensor([-1.0, 0.0, 0.4, 2.0])
    assert Quantizer(mode=mode).quantize("a", weight, quantizer_context(2)).tolist() == pytest.approx(expected)


def test_each_output_channel_may_have_a_range_of_its_own() -> None:
    weight = torch.tensor([[-1.0, 0.4, 2.0], [0.0, 20.0, 30.0]])
    one = Quantizer(mode="ASYMMETRIC_UNSIGNED").quantize("a", weight, quantizer_context(2))
    own = Quantizer(mode="ASYMMETRIC_UNSIGNED", per_channel_wts=True).quantize("a", weight, quantizer_context(2))
    assert one[1].tolist() == pytest.approx([0, 62 / 3, 31])
    assert not one[0].any()
    assert own.flatten().tolist() == pytest.approx([-1, 0, 2, 0, 20, 30])


def test_a_range_without_width_has_the_scale_1() -> None:
    assert Quantizer().quantize("a", torch.zeros(3), quantizer_context(4)).tolist() == [0, 0, 0]
    assert Quantizer(mode="ASYMMETRIC_SIGNED").quantize("a", torch.zeros(3), quantizer_context(4)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_of_16_bits_are_rounded_as_32_bits_are(dtype: torch.dtype) -> None:
    weight = (torch.linspace(-1, 1, 1001) * 1e-3).to(dtype)
    got = Quantizer().quantize("a", weight, quantizer_context(8))
    assert got.dtype == dtype
    assert torch.equal(got, Quantizer().quantize("a", weight.float(), quantizer_context(8)).to(dtype))


def test_the_gradient_of_a_weight_goes_straight_through() -> None:
    weight = torch.tensor([-3.0, 0.4, 2.0], requires_grad=True)
    Quantizer().quantize("a", weight, quantizer_context(3)).backward(torch.tensor([1.0, 2.0, 3.0]))
    assert weight.grad.tolist() == [1, 2, 3]


@settings(deadline=None)  # the first call of torch is slow
@given(
    st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=40),
    st.integers(2, 8),
    st.sampled_from(["SYMMETRIC", "SYMMETRIC_RESTRICTED", "ASYMMETRIC_SIGNED", "ASYMMETRIC_UNSIGNED"]),
)
def test_zero_stays_zero_and_no_value_moves_by_more_than_half_a_step(
    weights: list[float], bits: int, mode: Any
) -> None:
    weight = torch.tensor([0.0, *weights])
    got = Quantizer(mode=mode).quantize("a", weight, quantizer_context(bits))
    assert got[0] == 0
    step = 1 / linear(mode, bits, weight.min(), weight.max()).scale
    assert (got - weight).abs().max() <= step * 0.5001 + 1e-30
    assert different_values((got / step).round()) <= 2**bits + (mode == "SYMMETRIC")


# Activations


def model_in(training: bool) -> nn.Module:
    return nn.Module().train(training)


def seen(quantizer: Quantizer, *batches: list[float], training: bool = True) -> list[list[float]]:
    told = quantizer_context(2, model_in(training))
    return [quantizer.quantize_activation("a", torch.tensor(batch), told).tolist() for batch in batches]


def test_the_range_of_an_activation_is_the_corrected_moving_average_of_those_that_training_has_seen() -> None:
    quantizer = Quantizer(mode="ASYMMETRIC_UNSIGNED", ema_decay=0.5)
    first, second = seen(quantizer, [0.0, 1.1, 3.0], [0.0, 2.2, 6.0])
    assert first == [0, 1, 3]
    assert second == pytest.approx([0, 5 / 3, 5]), "(0.5 · 0.5 · 3 + 0.5 · 6) / (1 - 0.25) = 5"
    assert quantizer.state_dict()["ranges"]["a"].tolist() == [0, 3.75, 2]


def test_a_longer_memory_moves_less() -> None:
    ends = [
        seen(Quantizer(mode="ASYMMETRIC_UNSIGNED", ema_decay=d), [0.0, 3.0], [0.0, 6.0])[1][1] for d in (0, 0.5, 0.9)
    ]
    assert ends == pytest.approx([6, 5, (0.9 * 0.1 * 3 + 0.1 * 6) / 0.19])


def test_in_evaluation_the_averages_stand_still_and_what_is_beyond_them_is_clipped() -> None:
    quantizer = Quantizer(mode="ASYMMETRIC_UNSIGNED")
    seen(quantizer, [0.0, 3.0])
    before = quantizer.state_dict()
    assert seen(quantizer, [0.0, 1.2, 30.0], training=False) == [pytest.approx([0, 1, 3])]
    assert torch.equal(quantizer.state_dict()["ranges"]["a"], before["ranges"]["a"])
    assert seen(Quantizer(mode="ASYMMETRIC_UNSIGNED"), [0.0, 30.0], training=False) == [pytest.approx([0, 30])], (
        "never trained"
    )


def test_the_gradient_of_an_activation_is_none_beyond_its_range() -> None:
    quantizer, given = Quantizer(mode="ASYMMETRIC_UNSIGNED"), torch.tensor([0.5, 2.0, 9.0], requires_grad=True)
    seen(quantizer, [0.0, 3.0])
    quantizer.quantize_activation("a", given, quantizer_context(2, model_in(False))).sum().backward()
    assert given.grad.tolist() == [1, 1, 0]


# Keys


def scheduled(**keys: Any) -> tuple[nn.Module, CompressionScheduler]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    policy = {"quantizer": {"instance_name": "q"}, "epochs": [0]}
    section = {"class": "QuantAwareTrainRangeLinearQuantizer", **keys}
    schedule = {"version": 1, "quantizers": {"q": section}, "policies": [policy]}
    scheduler = CompressionScheduler.from_dict(schedule, model, trace=SILENT)
    scheduler.on_epoch_begin(0)
    return model, scheduler


def inputs_of(**keys: Any) -> int:
    """How many different values of the inputs reach the first layer."""
    model, _ = scheduled(**keys)
    got: list[torch.Tensor] = []
    model[0].register_forward_pre_hook(lambda module, inputs: got.append(inputs[0]))
    model(torch.linspace(-1, 2, 300).reshape(100, 3))
    return different_values(got[0])


def test_inputs_are_quantized_with_the_bits_of_activations_or_their_own_or_not_at_all() -> None:
    assert inputs_of(bits_activations=2, mode="ASYMMETRIC_SIGNED") == 4
    assert inputs_of(bits_activations=2, mode="ASYMMETRIC_SIGNED", num_bits_inputs=3) == 8
    assert inputs_of(mode="ASYMMETRIC_SIGNED", num_bits_inputs=3) == 8
    assert inputs_of(bits_activations=2, quantize_inputs=False) == 300
    assert inputs_of(bits_activations=2, num_bits_inputs=32) == 300


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"bits_weights": 2}, {"0": (2, None, None)}),
        ({"bits_bias": 2}, {"0": (None, None, 2)}),
        ({"bits_activations": 3}, {"1": (None, 3, None), "<input>": (None, 3, None)}),
        ({"bits_weights": 4, "bits_overrides": {"0": {"wts": 2}}}, {"0": (2, None, None)}),
        ({"bits_weights": 4, "overrides": {"0": {"bits_weights": 2}}}, {"0": (2, None, None)}),
    ],
)
def test_each_key_changes_what_is_quantized(keys: dict[str, Any], expected: dict[str, Any]) -> None:
    _, scheduler = scheduled(**keys)
    plan = scheduler.policies[0].bits
    assert {name: (given["weights"], given["activations"], given["bias"]) for name, given in plan.items()} == expected


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mode": "SYMETRIC"}, "quantizers.q.mode: must be 'SYMMETRIC', 'SYMMETRIC_RESTRICTED'"),
        ({"ema_decay": 1.0}, "quantizers.q.ema_decay: must be less than 1, got 1.0"),
        ({"num_bits_inputs": 1}, "quantizers.q.num_bits_inputs: must be greater than or equal to 2, got 1"),
        ({}, "quantizers.q.class: QuantAwareTrainRangeLinearQuantizer quantizes nothing: it is given no bits"),
        (
            {"bits_weights": 1, "mode": "SYMMETRIC_RESTRICTED"},
            "quantizers.q.bits_weights: must be 2 or more: 1 bit of SYMMETRIC_RESTRICTED has no integer but 0 ('0')",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(keys: dict[str, Any], message: str) -> None:
    assert quantizer_problem("QuantAwareTrainRangeLinearQuantizer", **keys).startswith(message)


# The card


def test_the_cards_schedule_does_what_the_card_says_to_its_end() -> None:
    channels: dict[int, list[int]] = {}

    def after(epoch: int, net: nn.Module, run: CompressionScheduler) -> None:
        channels[epoch] = [max(map(different_values, layer.weight)) for layer in (net.fc1, net.conv2, net.fc2)]
        if 2 <= epoch < 200:
            ranges = run.state_dict()["components"]["quantizers.integers"]["ranges"]
            assert set(ranges) == {"<input>", "relu", "relu_1", "relu_2"}
            assert all(tensor[2] == epoch - 1 for tensor in ranges.values()), "one mini-batch an epoch"

    quantized_epochs(CARD, after)
    assert channels[1] == channels[200] == [12, 72, 8]
    assert channels[100][2] == 8
    assert channels[100][1] <= 72


# The laws of every component


@pytest.mark.parametrize("mode", ["SYMMETRIC", "ASYMMETRIC_SIGNED"])
def test_the_class_keeps_the_laws(mode: str) -> None:
    check_component(Quantizer, bits_weights=4, bits_activations=4, per_channel_wts=mode == "SYMMETRIC", mode=mode)
