"""What prunekit costs, as ratios to a baseline in the same run. Run with `tox -e bench`.

Each pair is timed in turn, A B A B …, and the ratio is that of the medians: a machine that slows down slows both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.timing import Weights, in_turn, report, resnet50_shapes, seconds
from torch import Tensor, nn

from prunekit import CompressionScheduler, Trace


def pruner(level: float, frequency: int = 1, **keys: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "pruners": {"p": {"class": "SparsityLevelParameterPruner", "levels": {"*": level}, **keys}},
        "policies": [
            {"pruner": {"instance_name": "p"}, "starting_epoch": 0, "ending_epoch": 10**9, "frequency": frequency}
        ],
    }


def test_pruning_step(benchmark: Any, device: torch.device, tmp_path: Path) -> None:
    """25.5M weights shaped like ResNet-50 at 80 %: asked are <= 1/25 of l1_unstructured, <= 2.2 of the floor."""
    from torch.nn.utils import prune

    model = Weights(resnet50_shapes(), device)
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    scheduler = CompressionScheduler.from_dict(pruner(0.8), model, trace=Trace(tmp_path, logger=None))
    epoch = iter(range(10**9))
    scratch = [
        (torch.empty_like(w), torch.empty_like(w, dtype=torch.bool), torch.empty_like(w)) for w in start.values()
    ]

    def reset() -> None:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(start[name])

    def ours() -> None:
        scheduler.on_epoch_begin(next(epoch))

    def floor() -> None:
        for weight, (magnitude, mask, pruned) in zip(start.values(), scratch, strict=True):
            torch.abs(weight, out=magnitude)
            torch.gt(magnitude, 1.2816, out=mask)
            torch.mul(weight, mask, out=pruned)

    def torchs() -> None:
        holder = Weights([], device)
        for name, weight in start.items():
            setattr(holder, name, nn.Parameter(weight.clone()))
        for name in start:
            prune.l1_unstructured(holder, name, amount=0.8)

    peer = in_turn(device, 2, torchs=torchs)["torchs"]
    times: dict[str, list[float]] = {"ours": [], "floor": []}
    for _ in range(12):
        reset()
        times["ours"].append(seconds(ours, device))
        times["floor"].append(seconds(floor, device))
    ours_s, floor_s = (statistics.median(values[2:]) for values in times.values())
    assert scheduler.sparsity() == pytest.approx(0.8, abs=1e-4), "what was timed did the work"
    figures = {"ms": ours_s * 1e3, "to_torch_prune": ours_s / peer, "to_floor": ours_s / floor_s}
    report(benchmark, device, ours, **figures)


def mlp() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [layer for _ in range(6) for layer in (nn.Linear(1024, 1024), nn.ReLU())]
    return nn.Sequential(*layers), (16, 1024)


def convs() -> tuple[nn.Module, tuple[int, ...]]:
    widths = [3, 32, 32, 32, 64, 64, 64, 128, 128, 128]
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(pairwise(widths)):
        layers += [nn.Conv2d(before, after, 3, padding=1, stride=2 if index in (3, 6) else 1), nn.ReLU()]
    return nn.Sequential(*layers), (64, 3, 32, 32)


@pytest.mark.parametrize(("network", "rounds"), [(mlp, 50), (convs, 8)])
def test_training_step_with_every_weight_masked(
    benchmark: Any, device: torch.device, tmp_path: Path, network: Any, rounds: int
) -> None:
    """Asked of the step with masks: <= 1.10 of the bare one for the MLP at batch 16, <= 1.01 for the convolutions.

    The median over five pairs of networks, each in memory of its own: where that lies matters as much as the masks.
    """
    ratios = []
    for pair in range(5):
        bare = bare_step(*ready(network, device))
        model, optimizer, x = ready(network, device)
        masked = masked_step(model, optimizer, x, tmp_path / str(pair))
        times = in_turn(device, rounds, bare=bare, masked=masked)
        ratios.append(times["masked"] / times["bare"])
        zeros = [(w == 0).float().mean().item() for w in model.parameters() if w.dim() > 1]
        assert zeros == pytest.approx([0.8] * len(zeros), abs=1e-2), "what was timed kept its masks"
    figures = {"ms": times["masked"] * 1e3, "to_bare": statistics.median(ratios)}
    report(benchmark, device, masked, **figures, least=min(ratios), most=max(ratios))


def ready(network: Any, device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer, Tensor]:
    model, shape = network()
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    return model, optimizer, torch.randn(shape, device=device)


def bare_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Callable[..., None]:
    def step(total_loss: Callable[[Tensor], Tensor] = lambda loss: loss) -> None:
        optimizer.zero_grad()
        total_loss(model(x).square().mean()).backward()
        optimizer.step()

    return step


def masked_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, run_dir: Path) -> Callable[[], None]:
    levels = {"class": "SparsityLevelParameterPruner", "levels": {"re:.*weight": 0.8}}
    schedule = {**pruner(0.8, frequency=10**9), "pruners": {"p": levels}}
    trace = Trace(run_dir, logger=None)
    scheduler = CompressionScheduler.from_dict(schedule, model, optimizer, trace=trace)
    scheduler.on_epoch_begin(0)
    scheduler.on_epoch_end(0)
    scheduler.on_epoch_begin(1)
    step = bare_step(model, optimizer, x)

    def masked() -> None:
        for _ in scheduler.minibatches((0,)):
            step(scheduler.total_loss)

    return masked


def test_idle_policies(benchmark: Any, device: torch.device) -> None:
    """Twenty policies outside their windows: asked are <= 2 microseconds a mini-batch in all."""
    model = nn.Linear(8, 8).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    window = {"starting_epoch": 5, "ending_epoch": 6, "frequency": 1}
    names = [f"p{i}" for i in range(20)]
    schedule = {
        "version": 1,
        "regularizers": {name: {"class": "L1Regularizer", "reg_regims": {"weight": 0.1}} for name in names},
        "policies": [{"regularizer": {"instance_name": name}, **window} for name in names],
    }
    scheduler = CompressionScheduler.from_dict(schedule, model, optimizer, trace=Trace(level="info"))
    scheduler.on_epoch_begin(0)
    loss = torch.zeros(())

    def minibatches(number: int = 1000) -> None:
        for m in range(number):
            scheduler.on_minibatch_begin(0, m, number)
            scheduler.before_backward_pass(0, m, number, loss)
            scheduler.before_parameter_optimization(0, m, number)
            scheduler.on_minibatch_end(0, m, number)

    assert not any(scheduler._execution.bus.hears(hook) for hook in ("on_minibatch_begin", "before_backward_pass"))
    microseconds = statistics.median(seconds(minibatches, device) for _ in range(9)) * 1e3
    report(benchmark, device, minibatches, us_per_minibatch=microseconds)
