"""Keeping zeros: which are kept, when they are looked for, and for how long."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from prunekit_keep_zeros import KeepZeros
from structlog.testing import capture_logs
from torch import nn

from prunekit import CompressionScheduler, ScheduleError
from prunekit.testing import TinyNet, check_component, runs, weights_model

SPARSE = [[1.0, 0.0, -2.0, -0.0], [0.0, 3.0, float("inf"), 1e-30]]
KEPT = [[True, False, True, False], [False, True, True, True]]


def scheduler(net: nn.Module, weights: Any = "fc1.weight", epochs: Any = (0,), **options: Any) -> CompressionScheduler:
    schedule = {
        "version": 1,
        "pruners": {"zeros": {"class": "KeepZeros", "weights": weights}},
        "policies": [{"pruner": {"instance_name": "zeros"}, "epochs": list(epochs)}],
    }
    return CompressionScheduler.from_dict(schedule, net, **options)


def masks(run: CompressionScheduler) -> dict[str, Any]:
    return {name: mask.tolist() for name, mask in run.masks.items()}


def fine_tuned(net: nn.Module, run: CompressionScheduler, epochs: int = 2) -> None:
    """Every weight is pushed away from where it is."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    for epoch in range(epochs):
        run.on_epoch_begin(epoch, optimizer)
        run.on_minibatch_begin(epoch, 0, 1)
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        run.on_minibatch_end(epoch, 0, 1)
        run.on_epoch_end(epoch)


# Which zeros


def test_what_is_zero_is_masked_and_nothing_else():
    run = scheduler(weights_model(fc1=SPARSE))
    run.on_epoch_begin(0)
    assert masks(run) == {"fc1.weight": KEPT}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_zeros_stay_zero_while_the_rest_is_trained(dtype):
    net = weights_model(fc1=torch.tensor([2.0, 0.0, -3.0, 0.0], dtype=dtype))
    fine_tuned(net, scheduler(net))
    assert net.fc1.weight.tolist() == [0.0, 0.0, -5.0, 0.0]


def test_a_tensor_that_nothing_selects_is_trained_as_it_is():
    net = weights_model(fc1=[1.0, 0.0], fc2=[1.0, 0.0])
    fine_tuned(net, scheduler(net))
    assert (net.fc1.weight.tolist(), net.fc2.weight.tolist()) == ([-1.0, 0.0], [-1.0, -2.0])


def test_a_tensor_without_zeros_has_no_mask():
    run = scheduler(weights_model(fc1=[1.0, 0.0], fc2=[1.0, 2.0]), "*")
    run.on_epoch_begin(0)
    assert masks(run) == {"fc1.weight": [True, False]}


# When


def test_it_looks_when_its_window_opens():
    net = weights_model(fc1=[1.0, 2.0])
    run = scheduler(net, epochs=[1])
    run.on_epoch_begin(0)
    with torch.no_grad():
        net.fc1.weight[1] = 0
    run.on_epoch_begin(1)
    assert masks(run) == {"fc1.weight": [True, False]}


def test_a_weight_that_becomes_zero_later_is_not_taken():
    net = weights_model(fc1=[1.0, 0.0, 5.0])
    run = scheduler(net, epochs=[0, 1])
    fine_tuned(net, run)  # which takes the first weight through 0
    assert net.fc1.weight.tolist() == [-1.0, 0.0, 3.0]
    assert masks(run) == {"fc1.weight": [True, False, True]}


def test_a_run_that_goes_on_does_not_look_again():
    run = scheduler(weights_model(fc1=[1.0, 0.0, 5.0]), epochs=[0, 1])
    run.on_epoch_begin(0)
    run.on_epoch_end(0)
    resumed = scheduler(weights_model(fc1=[0.0, 0.0, 5.0]), epochs=[0, 1])
    resumed.load_state_dict(run.state_dict())
    resumed.on_epoch_begin(1)
    assert masks(resumed) == {"fc1.weight": [True, False, True]}


# What is said


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0, 2.0], {"event": "no weight is zero", "parameters": ["fc1.weight"]}),
        ([0.0, 0.0], {"event": "no weight is left", "parameter": "fc1.weight"}),
    ],
)
def test_what_is_probably_not_meant_is_a_warning(weights, said):
    run = scheduler(weights_model(fc1=weights))
    with capture_logs() as lines:
        run.on_epoch_begin(0)
    (line,) = [line for line in lines if line["log_level"] == "warning"]
    assert said.items() <= line.items()


@pytest.mark.parametrize(("weights", "message"), [([], "selects nothing"), ("fc9.*", "'fc9.*' selects nothing")])
def test_what_selects_nothing_is_refused_at_load(weights, message):
    with pytest.raises(ScheduleError, match=re.escape(message)):
        scheduler(weights_model(fc1=[1.0]), weights)


# The laws of every component


class SparseNet(TinyNet):
    """A third of all weights is zero."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.view(-1)[::3] = 0


@pytest.mark.parametrize("net", [TinyNet, SparseNet])
def test_it_keeps_the_laws(net, monkeypatch):
    monkeypatch.setattr(runs, "TinyNet", net)
    check_component(KeepZeros, weights="*.weight")
