"""A quantized layer is initialized anew, copied by its class, compiled before it had a mask: it stays what it was."""

from __future__ import annotations

from typing import Any

import torch
from helpers import MLP, SILENT, batches, pruning, train_attached, window
from torch import nn

from prunekit import CompressionScheduler

QUANTIZING: dict[str, Any] = {
    "version": 1,
    "quantizers": {"q": {"class": "DorefaQuantizer", "bits_weights": 4, "bits_activations": None}},
    "policies": [{"quantizer": {"instance_name": "q"}, **window(0, 3)}],
}


def in_epoch_0(data: dict[str, Any], model: nn.Module) -> CompressionScheduler:
    scheduler = CompressionScheduler.from_dict(data, model, trace=SILENT)
    scheduler.on_epoch_begin(0)
    return scheduler


def test_a_quantized_layer_that_is_initialized_anew_gets_other_weights() -> None:
    model = MLP()
    in_epoch_0(QUANTIZING, model)
    torch.manual_seed(3)
    model.fc1.reset_parameters()
    torch.manual_seed(3)
    assert torch.equal(model.fc1._parameters["weight"], nn.Linear(12, 8).weight)


def test_a_layer_made_by_the_class_of_a_quantized_one_is_plain_until_it_takes_its_place() -> None:
    model = MLP()
    scheduler = in_epoch_0(QUANTIZING, model)
    layer = type(model.fc1)(12, 8)
    assert layer.weight is layer._parameters["weight"]
    model.fc1 = layer
    scheduler.on_minibatch_begin(0, 0, 1)
    assert len(layer.weight.unique()) <= 16
    scheduler.close()
    scheduler.quantized.clear()
    assert type(layer) is nn.Linear and layer.weight is layer._parameters["weight"]


def test_a_compiled_layer_sees_a_mask_that_comes_later() -> None:
    pruners = pruning(when=window(1, 3))
    data = {**pruners, **QUANTIZING, "policies": [*pruners["policies"], *QUANTIZING["policies"]]}
    weights = []
    for compiled in (False, True):
        model = MLP()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        around = torch.compile(model, backend="eager") if compiled else model
        train_attached(CompressionScheduler.from_dict(data, around, optimizer, trace=SILENT), optimizer, 3)
        weights.append(around(batches()[0][0]))
    assert torch.equal(*weights)
