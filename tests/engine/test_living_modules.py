"""Modules that are replaced under what sits on them: quantized forward passes, hooks, batch normalization."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import SILENT, Recorder, pruning, window, zeros
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunekit import CompressionScheduler, PrunekitError, Trace


class Network(nn.Module):
    """conv 2 -> 4, its batch normalization and ReLU, a second convolution and a function between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.ReLU()
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.head(self.relu(self.bn(self.conv(x)))))


X = torch.linspace(-1, 1, 2 * 2 * 5 * 5).reshape(2, 2, 5, 5)


def quantizing(**keys: Any) -> dict[str, Any]:
    policy = {"quantizer": {"instance_name": "q"}, **window(0, 3)}
    quantizer = {"class": "DorefaQuantizer", "bits_weights": 2, "bits_activations": 2, **keys}
    return {"version": 1, "quantizers": {"q": quantizer}, "policies": [policy]}


def begun(schedule: dict[str, Any], model: Any, **options: Any) -> CompressionScheduler:
    torch.manual_seed(0)
    scheduler = CompressionScheduler.from_dict(schedule, model, **{"trace": SILENT, **options})
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 2)
    model(X)
    scheduler.on_minibatch_end(0, 0, 2)
    return scheduler


def test_activations_and_weights_of_modules_that_were_replaced_are_quantized() -> None:
    model: Any = Network()
    scheduler = begun(quantizing(), model)
    model.relu, model.conv = nn.ReLU(), nn.Conv2d(2, 4, 1)
    scheduler.on_minibatch_begin(0, 1, 2)
    heard: list[Tensor] = []
    model.relu.register_forward_hook(lambda module, inputs, output: heard.append(output))
    out = model(X)
    assert (len(heard[0].unique()) <= 4, len(out.unique()) <= 4, len(model.conv.weight.unique()) <= 4) == (True,) * 3
    assert type(model.relu).__name__ == "QuantizedReLU"


def test_an_activation_that_is_gone_is_an_error() -> None:
    model: Any = Network()
    scheduler = begun(quantizing(), model)
    model.relu = nn.Identity()
    with pytest.raises(PrunekitError, match=r"^no activation of the model any more: 'relu', which policies\[0\] "):
        scheduler.on_minibatch_begin(0, 1, 2)


def test_a_layer_replaced_while_quantization_is_suspended_is_quantized_afterwards() -> None:
    model: Any = Network()
    scheduler = begun(quantizing(), model)
    with scheduler.quantized.suspended():
        model.conv = nn.Conv2d(2, 4, 1)
        assert scheduler.sparsity("conv.weight") == 0
        assert len(model.conv.weight.unique()) == 8
    assert len(model.conv.weight.unique()) <= 4


def test_a_parametrization_added_on_top_of_quantization_stays_when_it_ends() -> None:
    model: Any = Network()
    scheduler = begun(quantizing(bits_bias=4), model)
    parametrize.register_parametrization(model.conv, "bias", nn.Identity())
    scheduler.on_minibatch_begin(0, 1, 2)
    assert len(model.conv.weight.unique()) <= 4
    scheduler.quantized.clear()
    assert [type(module) for module in model.children()][1:] == [nn.BatchNorm2d, nn.ReLU, nn.Conv2d]
    assert type(model.conv).__bases__ == (nn.Conv2d,)
    assert "Parametrized" in type(model.conv).__name__
    assert sorted(name for name, _ in model.conv.named_parameters()) == ["parametrizations.bias.original", "weight"]


def test_a_model_that_changes_before_quantization_begins_is_not_quantized_by_it() -> None:
    model: Any = Network()
    scheduler = CompressionScheduler.from_dict(quantizing(), model, trace=SILENT)
    model.conv = nn.Conv2d(2, 4, 1)
    scheduler.sparsity()
    assert dict(scheduler.quantized.weights) == {}


def test_a_batch_normalization_that_was_replaced_is_the_one_that_is_folded() -> None:
    schedule = pruning(
        "L1RankedStructureParameterPruner",
        granularity={"dim": 0},
        desired_sparsity=0.25,
        weights=["conv.weight"],
        args={"fold_batchnorm": True},
    )
    model: Any = Network()
    scheduler = begun(schedule, model)
    scheduler.on_epoch_end(0)
    model.bn = nn.BatchNorm2d(4)
    with torch.no_grad():
        model.conv.weight.fill_(1)
        model.bn.weight.copy_(torch.tensor([2.0, 1.0, 3.0, 4.0]))
    scheduler.on_epoch_begin(1)
    assert [zeros(row) for row in model.conv.weight] == [0, 2, 0, 0]
    model.bn = None
    with pytest.raises(PrunekitError, match=r"^fold_batchnorm: the model has no module 'bn' any more\n"):
        scheduler.on_epoch_begin(2)


def test_a_pruner_that_listens_hears_the_modules_that_were_put_in() -> None:
    schedule = pruning(
        "ActivationAPoZRankedFilterPruner",
        granularity={"dim": 0},
        desired_sparsity=0.5,
        weights=["conv.weight"],
        when=window(1, 3),
    )
    model: Any = Network()
    former, recorder = model.relu, Recorder()
    scheduler = begun(schedule, model, trace=Trace(logger=recorder))
    model.relu = nn.ReLU()
    model.conv = nn.Conv2d(2, 4, 1)
    scheduler.on_minibatch_begin(0, 1, 2)
    assert (len(former._forward_hooks), len(model.relu._forward_hooks)) == (0, 1)
    replaced = {"level": "info", "event": "parameters replaced", "epoch": 0, "minibatch": 1}
    assert recorder.events("parameters replaced") == [{**replaced, "parameters": ["conv.weight", "conv.bias"]}]


LAYERS: dict[str, Any] = {
    "linear": lambda: nn.Linear(4, 6),
    "convolution": lambda: nn.Conv2d(4, 6, 3),
    "channels last": lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last),
    "transposed convolution": lambda: nn.ConvTranspose1d(4, 6, 3),
    "embedding": lambda: nn.Embedding(6, 4),
    "recurrent": lambda: nn.LSTM(4, 6),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "normalization": lambda: nn.LayerNorm(4),
}


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_keeps_its_masks_and_so_does_an_optimizer_made_anew(layer: str, optimizer: Any) -> None:
    make = LAYERS[layer]
    model: Any = nn.Sequential(make())
    scheduler = CompressionScheduler.from_dict(pruning(levels={"*": 0.5}), model, trace=SILENT)
    scheduler.on_epoch_begin(0)
    expected = {name: int((~mask).sum()) for name, mask in scheduler.masks.items()}
    for minibatch, change in enumerate(
        (lambda: assigned(model), lambda: model.double(), lambda: replaced(model, make))
    ):
        change()
        anew = optimizer(model.parameters(), lr=0.1)
        scheduler.on_minibatch_begin(0, minibatch, 3, anew)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        before = {name: int((p[~scheduler.masks[name]] == 0).sum()) for name, p in model.named_parameters()}
        anew.step()
        after = {name: int((p[~scheduler.masks[name]] == 0).sum()) for name, p in model.named_parameters()}
        scheduler.on_minibatch_end(0, minibatch, 3, anew)
        assert (before, after) == (expected, expected)


def assigned(model: nn.Module) -> None:
    model.load_state_dict({name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}, assign=True)


def replaced(model: Any, make: Any) -> None:
    model[0] = make()
