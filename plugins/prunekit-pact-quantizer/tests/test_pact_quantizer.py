"""PACT: values and gradients small enough to check by eye, clipping values that are trained, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SILENT, different_values, quantized_epochs, quantizer_context, quantizer_problem
from hypothesis import given, settings, strategies as st
from prunekit_dorefa_quantizer import DorefaQuantizer
from prunekit_pact_quantizer import PACTQuantizer
from torch import nn

from prunekit import CompressionScheduler
from prunekit.testing import check_component

CARD = Path(__file__).parents[1] / "README.md"


# Activations


def activation(quantizer: PACTQuantizer, bits: int, *given: float) -> tuple[Any, torch.Tensor, nn.Parameter]:
    """What goes on, what was given, and the clipping value."""
    (clip,) = quantizer.parameter_group(["a"], torch.device("cpu"))["params"]
    inputs = torch.tensor(given, requires_grad=True)
    return quantizer.quantize_activation("a", inputs, quantizer_context(bits)), inputs, clip


def test_activations_are_clipped_at_alpha_and_rounded_to_its_steps() -> None:
    got, _, _ = activation(PACTQuantizer(act_clip_init_val=1.5), 2, 0.0, 0.2, 0.3, 1.1, 1.5, 9.0)
    assert got.tolist() == [0, 0, 0.5, 1, 1.5, 1.5]


def test_the_gradient_of_alpha_is_that_of_all_that_is_clipped_and_below_it_goes_straight_through() -> None:
    got, given, clip = activation(PACTQuantizer(act_clip_init_val=1.5), 2, 0.2, 1.1, 1.5, 9.0)
    got.backward(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    assert given.grad.tolist() == [1, 2, 0, 0]
    assert clip.grad.tolist() == [12]


@settings(deadline=None)  # the first call of torch is slow
@given(st.lists(st.floats(0, 9, width=32), min_size=1, max_size=40), st.integers(1, 8), st.floats(0.1, 8))
def test_there_are_at_most_2_to_the_bits_levels_between_0_and_alpha(given: list[float], bits: int, clip: float) -> None:
    got, _, _ = activation(PACTQuantizer(act_clip_init_val=clip), bits, *given)
    assert different_values(got) <= 2**bits
    assert got.min() >= 0 and got.max() <= clip * (1 + 1e-6)


def test_weights_are_those_of_dorefa() -> None:
    weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    for bits in (1, 2, 8):
        expected = DorefaQuantizer().quantize("a", weight, quantizer_context(bits))
        assert torch.equal(PACTQuantizer().quantize("a", weight, quantizer_context(bits)), expected)


# Keys


def trained(steps: int = 3, **keys: Any) -> torch.optim.Optimizer:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(1), model[0].bias.fill_(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.25)
    policy = {"quantizer": {"instance_name": "q"}, "epochs": [0]}
    section = {"class": "PACTQuantizer", "bits_activations": 4, **keys}
    schedule = {"version": 1, "quantizers": {"q": section}, "policies": [policy]}
    scheduler = CompressionScheduler.from_dict(schedule, model, optimizer, trace=SILENT)
    scheduler.on_epoch_begin(0)
    for step in range(steps):
        scheduler.on_minibatch_begin(0, step, steps)
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.on_minibatch_end(0, step, steps)
    return optimizer


def clip_of(optimizer: torch.optim.Optimizer) -> float:
    return optimizer.param_groups[1]["params"][0].item()


def test_alpha_starts_where_the_key_says_and_is_trained_where_it_clips() -> None:
    assert clip_of(trained(0)) == 8
    assert clip_of(trained(0, act_clip_init_val=1.5)) == 1.5
    assert clip_of(trained(1, act_clip_init_val=1.0)) == pytest.approx(1.0 - 0.1 * (3 + 0.25))
    assert clip_of(trained(1)) == pytest.approx(8 - 0.1 * 0.25 * 8), "nothing is clipped: the decay alone"


def test_the_decay_of_alpha_is_its_own_or_the_optimizers() -> None:
    assert [group["weight_decay"] for group in trained(0).param_groups] == [0.25, 0.25]
    assert [group["weight_decay"] for group in trained(0, act_clip_decay=0.5).param_groups] == [0.25, 0.5]
    assert clip_of(trained(1, act_clip_decay=0.0)) == 8


def test_each_activation_that_has_bits_has_an_alpha() -> None:
    assert len(trained(0, bits_weights=4, bits_bias=4).param_groups[1]["params"]) == 1
    without = trained(0, bits_activations=None, bits_weights=4)
    assert len(without.param_groups) == 1
    overridden = trained(0, bits_activations=None, bits_overrides={"1": {"acts": 2}})
    assert len(overridden.param_groups[1]["params"]) == 1
    assert len(trained(0, bits_weights=4, overrides={"1": {"bits_activations": None}}).param_groups) == 1


def test_its_state_is_the_clipping_values() -> None:
    one, other = PACTQuantizer(act_clip_init_val=2.0), PACTQuantizer()
    activation(one, 4, 1.0)
    (clip,) = other.parameter_group(["a"], torch.device("cpu"))["params"]
    other.load_state_dict(one.state_dict())
    assert (other.state_dict(), clip.item()) == ({"clips": {"a": torch.tensor([2.0])}}, 2)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"act_clip_init_val": 0.0}, "quantizers.q.act_clip_init_val: must be greater than 0, got 0.0"),
        ({"act_clip_decay": -1.0}, "quantizers.q.act_clip_decay: must be greater than or equal to 0, got -1.0"),
        ({"bits_activations": 0}, "quantizers.q.bits_activations: must be greater than or equal to 1, got 0"),
        ({}, "quantizers.q.class: PACTQuantizer quantizes nothing: it is given no bits for what there is"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(keys: dict[str, Any], message: str) -> None:
    assert quantizer_problem("PACTQuantizer", **keys) == message


# The card


def test_the_cards_schedule_does_what_the_card_says_to_its_end() -> None:
    seen, given = {}, []

    def after(epoch: int, net: nn.Module, run: CompressionScheduler) -> None:
        if epoch == 0:
            net.conv2.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].detach()))
        clips = run.state_dict()["components"]["quantizers.pact"]["clips"]
        seen[epoch] = (
            different_values(net.conv2.weight),
            different_values(given[-1]) if epoch else 0,
            clips["relu"].item(),
        )

    quantized_epochs(CARD, after)
    assert seen[0][2] == seen[1][2] == 8
    assert min(seen[1][1], seen[200][1]) > 16
    for epoch in (2, 100, 199):
        assert seen[epoch][0] <= 16
        assert seen[epoch][1] <= 16
    assert seen[199][2] < seen[2][2] <= 8, "the decay draws it down"


# The laws of every component


def test_the_class_keeps_the_laws() -> None:
    check_component(PACTQuantizer, bits_weights=4, bits_activations=4, act_clip_init_val=0.5, act_clip_decay=0.01)
