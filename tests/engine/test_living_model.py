"""A model that changes while it is trained: masks, regularizers, quantizers and counts follow the names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from helpers import MLP, Recorder, batches, pruning, window, zeros
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunekit import CompressionScheduler, Trace

NAME = "fc1.weight"


class Identity(nn.Module):
    """A parametrization that leaves the weight what it is."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight


# How a parameter changes


def assign(model: MLP) -> None:
    model.load_state_dict({name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}, assign=True)


def replace_the_layer(model: MLP) -> None:
    model.fc1 = nn.Linear(12, 8)


def move_the_parameter_into_another_layer(model: MLP) -> None:
    former, model.fc1 = model.fc1, nn.Linear(12, 8)
    model.fc1.weight = former._parameters["weight"]


def load_in_place(model: MLP) -> None:
    model.load_state_dict(MLP(seed=5).to(dtype_of(model)).state_dict())


def reset(model: MLP) -> None:
    model.fc1.reset_parameters()


def write_through_data(model: MLP) -> None:
    stored(model).data.normal_()


def write_slow_weights(model: MLP) -> None:
    """As Lookahead does it, which goes back half the way."""
    slow = next(MLP(seed=7).to(dtype_of(model)).parameters())
    stored(model).data.lerp_(slow.detach(), 0.5)


def give_other_data(model: MLP) -> None:
    stored(model).data = torch.randn(8, 12, dtype=dtype_of(model))


def make_anew_from_meta(model: MLP) -> None:
    model.to("meta")
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()


def overwrite_in_conversion(model: MLP) -> None:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def lay_out_otherwise(model: MLP) -> None:
    stored(model).data = torch.randn(12, 8, dtype=dtype_of(model)).t()


def unparametrize(model: MLP) -> None:
    """Without its values, which would be those that the forward pass reads: quantized ones."""
    parametrize.remove_parametrizations(model.fc1, "weight", leave_parametrized=False)


CHANGES: dict[str, Callable[[MLP], object]] = {
    "nothing": lambda model: None,
    "load_state_dict(assign=True)": assign,
    "another layer": replace_the_layer,
    "another layer with the same parameter": move_the_parameter_into_another_layer,
    "load_state_dict": load_in_place,
    "reset_parameters": reset,
    "a write through data": write_through_data,
    "slow weights": write_slow_weights,
    "other data": give_other_data,
    "other strides": lay_out_otherwise,
    "to_empty": make_anew_from_meta,
    "double": lambda model: model.double(),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "there and back": lambda model: model.half().float(),
    "a conversion that makes parameters anew": overwrite_in_conversion,
    "a parametrization": lambda model: parametrize.register_parametrization(model.fc1, "weight", Identity()),
    "a parametrization taken off": unparametrize,
}


# Who follows


def regularizing(class_: str, **keys: Any) -> dict[str, Any]:
    policy = {"regularizer": {"instance_name": "r"}, **window(0, 3)}
    return {"version": 1, "regularizers": {"r": {"class": class_, **keys}}, "policies": [policy]}


def quantizing() -> dict[str, Any]:
    policy = {"quantizer": {"instance_name": "q"}, **window(0, 3)}
    quantizer = {"class": "DorefaQuantizer", "bits_weights": 2, "bits_activations": None}
    return {"version": 1, "quantizers": {"q": quantizer}, "policies": [policy]}


LEVELS = {NAME: 0.5}
MOVEMENT = {"initial_sparsity": 0.0, "final_sparsity": 0.5, "weights": [NAME]}
COMPONENTS: Mapping[str, dict[str, Any]] = {
    "masks": pruning(levels=LEVELS),
    "masks in the forward pass": pruning(levels=LEVELS, args={"mask_on_forward_only": True}),
    "double copies": pruning(levels=LEVELS, args={"mask_on_forward_only": True, "use_double_copies": True}),
    "masked gradients": pruning(levels=LEVELS, args={"mask_on_forward_only": True, "mask_gradients": True}),
    "penalty": regularizing("L1Regularizer", reg_regims={NAME: 0.125}),
    "threshold": regularizing("L1Regularizer", reg_regims={NAME: 0.125}, threshold_criteria="Mean_Abs"),
    "observation": pruning(
        "MovementPruner", initial_sparsity=0.0, final_sparsity=0.5, weights=[NAME], when=window(1, 2)
    ),
    "quantization": quantizing(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("component", COMPONENTS)
def test_what_a_schedule_asks_for_goes_on_with_the_parameters_that_the_model_has_now(
    component: str, change: str
) -> None:
    torch.manual_seed(0)
    model, recorder = MLP(), Recorder()
    if change == "a parametrization taken off":
        parametrize.register_parametrization(model.fc1, "weight", Identity())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CompressionScheduler.from_dict(COMPONENTS[component], model, optimizer, trace=Trace(logger=recorder))
    minibatch(scheduler, optimizer, 0)
    before = dict(model.named_parameters())
    CHANGES[change](model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = minibatch(scheduler, optimizer, 1)
    EXPECTED[component](scheduler, model, seen)
    told = [name for line in recorder.events("parameters replaced") for name in line["parameters"]]
    now = dict(model.named_parameters())
    assert told == [name for name in before if name in now and now[name] is not before[name]]
    assert not [line for line in recorder.lines if line["level"] in ("warning", "error")]


def dtype_of(model: MLP) -> torch.dtype:
    return next(model.parameters()).dtype


def stored(model: MLP) -> nn.Parameter:
    """The weight itself, whatever the forward pass reads."""
    return next(p for n, p in model.named_parameters() if n in (NAME, "fc1.parametrizations.weight.original"))


def minibatch(scheduler: CompressionScheduler, optimizer: torch.optim.Optimizer, number: int) -> dict[str, Any]:
    """One mini-batch of epoch 0, of two: the weights in the forward pass, gradients, what was added to the loss."""
    model: Any = scheduler.model
    if number == 0:
        scheduler.on_epoch_begin(0, optimizer)
    scheduler.on_minibatch_begin(0, number, 2, optimizer)
    forward = {"read": model.fc1.weight.detach().clone(), "stored": stored(model).detach().clone()}
    x, y = batches(2)[number]
    loss = nn.functional.cross_entropy(model(x.to(dtype_of(model))), y)
    total = scheduler.before_backward_pass(0, number, 2, loss)
    optimizer.zero_grad()
    total.backward()
    grad = stored(model).grad
    assert grad is not None
    scheduler.before_parameter_optimization(0, number, 2)
    unmasked = stored(model).detach().clone()
    optimizer.step()
    scheduler.on_minibatch_end(0, number, 2)
    return {**forward, "grad": grad.clone(), "unmasked": unmasked, "term": total.detach() - loss.detach()}


# What is expected in the second mini-batch, of which the model has changed before


def masked(scheduler: CompressionScheduler, model: MLP, seen: Mapping[str, Any]) -> None:
    assert (zeros(seen["read"]), zeros(stored(model)), scheduler.sparsity(NAME)) == (48, 48, 0.5)


def masked_in_forward(scheduler: CompressionScheduler, model: MLP, seen: Mapping[str, Any]) -> None:
    assert zeros(seen["read"]) == 48
    assert zeros(stored(model)) < 48
    assert scheduler.sparsity(NAME) == 0.5


def masked_copy(scheduler: CompressionScheduler, model: MLP, seen: Mapping[str, Any]) -> None:
    assert (zeros(seen["read"]), zeros(seen["unmasked"]), zeros(stored(model))) == (48, 0, 0)
    assert torch.equal(seen["unmasked"][seen["read"] != 0], seen["read"][seen["read"] != 0])


def masked_gradient(scheduler: CompressionScheduler, model: MLP, seen: Mapping[str, Any]) -> None:
    assert not seen["grad"][~scheduler.masks[NAME]].any()
    assert seen["grad"].any()


def penalized(scheduler: CompressionScheduler, model: MLP, seen: Mapping[str, Any]) -> None:
    torch.testing.assert_close(seen["term"].double(), 0.125 * seen["stored"].double().abs().sum(), rtol=0.02, atol=0.02)


def thresholded(scheduler: CompressionScheduler, model: MLP, seen: Mapping[str, Any]) -> None:
    weight = stored(model).detach()
    assert zeros(weight) > 0
    assert float(weight[weight != 0].abs().min()) > 0.125


def observed(scheduler: CompressionScheduler, model: MLP, seen: Mapping[str, Any]) -> None:
    """The first pruning is by what the gradients of both mini-batches have shown."""
    scheduler.on_epoch_end(0)
    scheduler.on_epoch_begin(1)
    assert zeros(stored(model)) == 48


def quantized(scheduler: CompressionScheduler, model: MLP, seen: Mapping[str, Any]) -> None:
    assert len(seen["read"].unique()) <= 4
    assert len(seen["stored"].unique()) > 4
    values = scheduler.quantized.read(stored(model))
    assert torch.equal(model.fc1.weight, values)
    assert len(values.unique()) <= 4


EXPECTED: Mapping[str, Callable[[CompressionScheduler, MLP, Mapping[str, Any]], None]] = {
    "masks": masked,
    "masks in the forward pass": masked_in_forward,
    "double copies": masked_copy,
    "masked gradients": masked_gradient,
    "penalty": penalized,
    "threshold": thresholded,
    "observation": observed,
    "quantization": quantized,
}
