"""The users' own schedules, word for word, on networks with those layer names: each policy does what it says."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Recorder
from torch import nn

from examples import mnist
from examples.models.preact_resnet import PreactResNet
from prunekit import Application, CompressionScheduler, ScheduleError, Trace
from prunekit.model.names import without_wrappers

SCHEDULES = Path(__file__).parents[2] / "examples" / "schedules"
SENSITIVITIES = {
    "features.0.weight": 0.25,
    "features.3.weight": 0.35,
    "features.6.weight": 0.40,
    "features.8.weight": 0.45,
    "features.10.weight": 0.55,
    "classifier.1.weight": 0.875,
    "classifier.4.weight": 0.875,
    "classifier.6.weight": 0.625,
}
LAYER3 = [f"layer3.1.conv{i}.weight" for i in (1, 2, 3)] + ["layer3.2.conv1.weight"]
ALEXNETS = [mnist.alexnet, mnist.alexnet_wrapped]
RESNETS = [mnist.bottleneck_resnet, mnist.bottleneck_resnet_wrapped]


class Run:
    """A short training run of an application under one of the schedules, with its trace."""

    def __init__(self, make: Callable[..., Application], schedule: str, lr: float = 0.001) -> None:
        self.app, self.recorder = make(seed=0), Recorder()
        for group in self.app.optimizer.param_groups:
            group["lr"] = lr
        trace = Trace(logger=self.recorder)
        path = SCHEDULES / schedule
        self.scheduler = CompressionScheduler.from_yaml(path, self.app.model, self.app.optimizer, trace=trace)
        self.data = [(x[:8], y[:8]) for x, y in islice(self.app.train_loader, 2)]

    def name(self, bare: str) -> str:
        return next(n for n, _ in self.app.model.named_parameters() if without_wrappers(n) == bare)

    def weight(self, bare: str) -> torch.Tensor:
        return self.app.model.get_parameter(self.name(bare)).detach()

    def train(self, epochs: int, after: Callable[[int], Any] = lambda epoch: None) -> None:
        for epoch in self.scheduler.epochs(epochs):
            for x, y in self.scheduler.minibatches(self.data):
                self.app.optimizer.zero_grad()
                self.scheduler.total_loss(self.app.loss(self.app.model(x), y)).backward()
                self.app.optimizer.step()
            after(epoch)


@pytest.mark.parametrize("make", ALEXNETS)
def test_sensitivity_pruning_with_a_late_learning_rate_decay(make: Callable[..., Application]) -> None:
    run, rates, masks = Run(make, "alexnet.schedule_agp.yaml"), [], []
    start = {bare: run.weight(bare).clone() for bare in SENSITIVITIES}

    def after(epoch: int) -> None:
        rates.append(run.app.optimizer.param_groups[0]["lr"])
        masks.append({bare: run.scheduler.masks[run.name(bare)].clone() for bare in SENSITIVITIES})
        for bare, mask in masks[-1].items():
            assert not run.weight(bare)[~mask].any()

    run.train(42, after)
    for bare, s in SENSITIVITIES.items():
        assert torch.equal(masks[0][bare], start[bare].abs() > s * start[bare].std()), bare
    changed = run.recorder.events("masks changed")
    assert [line["epoch"] for line in changed] == list(range(0, 38, 2))
    assert set(changed[0]["sparsity"]) == {run.name(bare) for bare in SENSITIVITIES}
    assert all(torch.equal(masks[36][bare], masks[41][bare]) for bare in SENSITIVITIES)
    expected = [0.001 if epoch <= 24 else 0.001 * 0.9**epoch for epoch in range(42)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("make", RESNETS)
def test_l1_regularization_zeroes_small_weights_after_every_minibatch(make: Callable[..., Application]) -> None:
    run = Run(make, "l1_regularization.yaml", lr=0.01)
    norms = sum(run.weight(bare).abs().double().sum().item() for bare in LAYER3)

    def after(epoch: int) -> None:
        for bare in LAYER3:
            kept = run.weight(bare)[run.weight(bare) != 0]
            assert kept.abs().min() > 0.000002

    run.train(2, after)
    (first, _) = run.recorder.events("loss terms")
    assert first["means"]["my_L1_reg"] == pytest.approx(0.000002 * norms, rel=0.05)
    assert dict(run.scheduler.masks) == {}, "zeroed once each time, not masked"


@pytest.mark.parametrize("make", RESNETS)
def test_group_regularization_drops_whole_filters(make: Callable[..., Application]) -> None:
    run, bare = Run(make, "group_regularization.yaml", lr=0.0), LAYER3[0]
    with torch.no_grad():
        run.weight(bare)[2] = 0.00004
        run.weight(bare)[3] = 0.00006
    run.train(1)
    weight = run.weight(bare)
    assert not weight[2].any()
    assert weight[3].all()
    (terms,) = run.recorder.events("loss terms")
    expected = sum(0.00005 * run.weight(name).flatten(1).norm(dim=1).sum().item() for name in LAYER3)
    assert terms["means"]["my_filter_regularizer"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("make", ALEXNETS)
def test_mixed_pruning_and_regularization(make: Callable[..., Application]) -> None:
    run = Run(make, "mixed_pruning_and_regularization.yaml")
    run.train(40)
    terms = run.recorder.events("loss terms")
    assert [line["epoch"] for line in terms] == list(range(38))
    assert all(line["means"]["2d_groups_regularizer"] > 0 for line in terms)
    assert [line["epoch"] for line in run.recorder.events("masks changed")] == list(range(0, 38, 2))
    assert [line["epoch"] for line in run.recorder.events("learning rate changed")] == list(range(24, 40))


# Quantization


class NetOfNames(nn.Module):
    """conv1, relu1, block1 with conv1 and relu, fc and final_relu: what the quantization schedules name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.relu1 = nn.Conv2d(1, 4, 3), nn.ReLU()
        self.block1 = nn.Sequential(OrderedDict(conv1=nn.Conv2d(4, 4, 3), relu=nn.ReLU()))
        self.final_relu, self.fc = nn.ReLU(), nn.Linear(4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.block1(self.relu1(self.conv1(images)))
        return self.fc(self.final_relu(features.mean((2, 3))))


def net_of_names(seed: int, wrap: Callable[[nn.Module], nn.Module] = lambda model: model) -> Application:
    model = wrap(NetOfNames())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    batch = torch.randn(8, 1, 8, 8), torch.arange(8)
    return Application(model, optimizer, [batch, batch], [batch], nn.functional.cross_entropy)


def wrapped_net_of_names(seed: int) -> Application:
    return net_of_names(seed, nn.DataParallel)


def preact_resnet(seed: int) -> Application:
    torch.manual_seed(seed)
    model = PreactResNet(blocks=(1, 1), stem=True, width=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    batch = torch.randn(8, 1, 8, 8), torch.arange(8)
    return Application(model, optimizer, [batch, batch], [batch], nn.functional.cross_entropy)


def bits_of(run: Run) -> dict[str, tuple[int | None, int | None]]:
    """Module -> bits of weights and activations, from the one line that says so."""
    (line,) = run.recorder.events("modules quantized")
    return {without_wrappers(name): (given["weights"], given["activations"]) for name, given in line["bits"].items()}


def levels(run: Run, module: str) -> int:
    """How many different weights a module computes with."""
    modules = {without_wrappers(name): m for name, m in run.app.model.named_modules()}
    return len(modules[module].weight.detach().unique())


def trained_for_201_epochs(run: Run, layers: list[str]) -> dict[int, list[int]]:
    """How many different weights layers have after the first epoch, the last of the window, and the one behind it."""
    seen: dict[int, list[int]] = {}
    run.train(201, lambda epoch: seen.update({epoch: [levels(run, layer) for layer in layers]}))
    return {epoch: seen[epoch] for epoch in (0, 199, 200)}


@pytest.mark.parametrize("make", [net_of_names, wrapped_net_of_names])
def test_dorefa_quantization_leaves_four_modules_alone(make: Callable[..., Application]) -> None:
    run = Run(make, "dorefa_quantization.yaml", lr=0.01)
    seen = trained_for_201_epochs(run, ["conv1", "block1.conv1", "fc"])
    assert bits_of(run) == {"block1.conv1": (4, None), "block1.relu": (None, 8)}
    assert seen == {0: [36, seen[0][1], 40], 199: [36, seen[199][1], 40], 200: [36, 144, 40]}
    assert max(seen[0][1], seen[199][1]) <= 16


def test_dorefa_quantization_of_a_residual_network() -> None:
    run = Run(preact_resnet, "dorefa_quantization.yaml", lr=0.01)
    run.train(2)
    bits, modules = bits_of(run), dict(run.app.model.named_modules())
    alone = {"conv1", "relu1", "final_relu", "fc"}
    convolutions = {name for name, m in modules.items() if isinstance(m, nn.Conv2d)} - alone
    activations = {name for name, m in modules.items() if isinstance(m, nn.ReLU)} - alone
    assert bits == {**dict.fromkeys(convolutions, (4, None)), **dict.fromkeys(activations, (None, 8))}
    assert all(levels(run, name) <= 16 for name in convolutions)
    assert levels(run, "fc") == modules["fc"].weight.numel()


@pytest.mark.parametrize("make", [net_of_names, wrapped_net_of_names])
def test_dorefa_overrides_of_a_block(make: Callable[..., Application]) -> None:
    run = Run(make, "dorefa_block_overrides.yaml", lr=0.01)
    seen = trained_for_201_epochs(run, ["conv1", "block1.conv1", "fc"])
    assert bits_of(run) == {
        "conv1": (4, None),
        "relu1": (None, 8),
        "block1.conv1": (2, None),
        "block1.relu": (None, 8),
        "final_relu": (None, 8),
        "fc": (4, None),
    }
    (line,) = run.recorder.events("modules quantized")
    block = next(given for name, given in line["bits"].items() if without_wrappers(name) == "block1.conv1")
    assert block["by"].endswith("dorefa_block_overrides.yaml:8:7, block1.conv*")
    assert seen[200] == [36, 144, 40]
    for epoch in (0, 199):
        assert seen[epoch][0] <= 16 and seen[epoch][1] <= 4 and seen[epoch][2] <= 16


def test_a_schedule_whose_modules_are_not_there_says_which() -> None:
    app = mnist.lenet5(seed=0)
    with pytest.raises(ScheduleError) as error:
        CompressionScheduler.from_yaml(SCHEDULES / "dorefa_quantization.yaml", app.model, app.optimizer)
    missing = [problem.path for problem in error.value.problems]
    assert missing[-1].startswith("quantizers.dorefa_quantizer.bits_overrides.")
    assert "matches no module that can be quantized" in str(error.value)
