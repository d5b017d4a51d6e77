"""What a training step costs with a quantizer on all layers, as ratios to torch.ao's FakeQuantize on the same layers.

Its `FakeQuantize` observes ranges as torch.ao's own quantization-aware modules do it: 4 bits a weight, 8 an activation.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from benchmarks.timing import report
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

from examples.models.resnet_cifar import ResNetCifar
from prunekit import CompressionScheduler, Trace, load_plugins

QUANTIZERS = ["DorefaQuantizer", "WRPNQuantizer", "PACTQuantizer", "QuantAwareTrainRangeLinearQuantizer"]
ROUNDS = 9
MOST = 1.15


def mlp() -> nn.Module:
    layers = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20": (partial(ResNetCifar, 20, channels=3, width=16), (32, 3, 32, 32)),
    "mlp": (mlp, (64, 1, 28, 28)),
}


def fake_quantized(model: nn.Module) -> nn.Module:
    """FakeQuantize on the weights of all layers and behind all activations, in their forward passes."""
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.fake = FakeQuantize(
                MovingAverageMinMaxObserver, -8, 7, dtype=torch.qint8, qscheme=torch.per_tensor_symmetric
            )
            module.forward = partial(_weighted, module)
        elif isinstance(module, nn.ReLU):
            module.fake = FakeQuantize(MovingAverageMinMaxObserver, 0, 255)
            module.forward = partial(_activated, module)
    return model


def _weighted(module: Any, given: Tensor) -> Tensor:
    weight = module.fake(module.weight)
    if isinstance(module, nn.Conv2d):
        return module._conv_forward(given, weight, module.bias)
    return nn.functional.linear(given, weight, module.bias)


def _activated(module: Any, given: Tensor) -> Tensor:
    return module.fake(nn.functional.relu(given))


def step_of(model: nn.Module, images: Tensor, classes: Tensor, class_: str | None = None) -> Callable[[], None]:
    """A training step, under a quantizer or none."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    schedule: dict[str, Any] = {"version": 1, "policies": []}
    if class_ is not None:
        schedule["quantizers"] = {"q": {"class": class_, "bits_weights": 4, "bits_activations": 8}}
        schedule["policies"] = [{"quantizer": {"instance_name": "q"}, "epochs": [0]}]
    quiet = replace(load_plugins(), listeners=())
    scheduler = CompressionScheduler.from_dict(schedule, model, optimizer, trace=Trace(level="error"), plugins=quiet)
    scheduler.on_epoch_begin(0)

    def step() -> None:
        scheduler.on_minibatch_begin(0, 0, 2)
        loss = scheduler.total_loss(nn.functional.cross_entropy(model(images), classes))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.on_minibatch_end(0, 0, 2)

    return step


@pytest.mark.parametrize("net", NETS)
def test_a_training_step_with_all_layers_quantized(benchmark: Any, device: torch.device, net: str) -> None:
    """Asked are <= 1.15 of the step with FakeQuantize, for DoReFa."""
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.manual_seed(0)
    make, shape = NETS[net]
    base, images = make().to(device), torch.randn(shape, device=device)
    classes = torch.randint(0, 10, shape[:1], device=device)
    steps = {class_: step_of(deepcopy(base), images, classes, class_) for class_ in QUANTIZERS}
    steps["float"] = step_of(deepcopy(base), images, classes)
    steps["fake"] = step_of(fake_quantized(deepcopy(base)).to(device), images, classes)
    repeat = 1 if net == "resnet20" else 10
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS + 2):
        for name, step in steps.items():
            times[name].append(_seconds(step, device, repeat))
    median = {name: statistics.median(values[2:]) for name, values in times.items()}
    ratios = {name: seconds / median["fake"] for name, seconds in median.items()}
    report(benchmark, device, steps["DorefaQuantizer"], ms=median["DorefaQuantizer"] * 1e3, **ratios)
    assert ratios["DorefaQuantizer"] <= MOST


def _seconds(step: Callable[[], None], device: torch.device, repeat: int) -> float:
    """Of this process alone, on a CPU: others may be busy beside it."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    for _ in range(repeat):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (clock() - start) / repeat
