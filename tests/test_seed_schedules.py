"""The users' own schedules, word for word, on networks with those layer names: each policy does what it says."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bus import Recorder

from examples import mnist
from prunekit import Application, CompressionScheduler, ScheduleError, Trace

SCHEDULES = Path(__file__).parents[1] / "examples" / "schedules"
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
        from prunekit.selectors import without_module

        return next(n for n, _ in self.app.model.named_parameters() if without_module(n) == bare)

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


@pytest.mark.parametrize("schedule", ["dorefa_quantization.yaml", "dorefa_block_overrides.yaml"])
def test_a_schedule_with_a_quantizer_that_is_not_installed_says_so(schedule: str) -> None:
    app = mnist.lenet5(seed=0)
    with pytest.raises(ScheduleError, match=r"quantizers\.dorefa_quantizer\.class: no quantizer is registered"):
        CompressionScheduler.from_yaml(SCHEDULES / schedule, app.model, app.optimizer)
