"""What several tests need: small models and schedules, a silent trace, a state sent through a file."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunekit import CompressionScheduler, Plugins, Trace, load_plugins

SILENT = Trace(level="error")


class MLP(nn.Module):
    """fc1 12 -> 8, fc2 8 -> 4; the weights depend on the seed only."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.fc1, self.fc2 = nn.Linear(12, 8), nn.Linear(8, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


def batches(number: int = 4, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Random inputs [size, 12] and classes [size], the same at every call."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 12, generator=generator), torch.randint(0, 4, (size,), generator=generator))
        for _ in range(number)
    ]


def without_listeners() -> Plugins:
    """All components that are installed, and nobody who listens, whoever else may be installed."""
    return replace(load_plugins(), listeners=(), broken=(), switched_off=())


def window(start: int, end: int, frequency: int = 1) -> dict[str, int]:
    return {"starting_epoch": start, "ending_epoch": end, "frequency": frequency}


def pruning(
    class_: str = "SparsityLevelParameterPruner", when: dict[str, Any] | None = None, args: Any = None, **keys: Any
) -> dict[str, Any]:
    """A schedule with one pruner called p."""
    keys = keys or {"levels": {"fc1.weight": 0.5}}
    policy = {"pruner": {"instance_name": "p", **({"args": args} if args else {})}, **(when or window(0, 3))}
    return {"version": 1, "pruners": {"p": {"class": class_, **keys}}, "policies": [policy]}


def train_attached(
    scheduler: CompressionScheduler, optimizer: torch.optim.Optimizer, epochs: int, data: Any = None
) -> None:
    """The attached loop."""
    for _ in scheduler.epochs(epochs):
        for x, y in scheduler.minibatches(data or batches()):
            optimizer.zero_grad()
            loss = scheduler.total_loss(nn.functional.cross_entropy(scheduler.model(x), y))
            loss.backward()
            optimizer.step()
        scheduler.report(min=1.0, max=0.5)


def train_explicit(
    scheduler: CompressionScheduler, optimizer: torch.optim.Optimizer, epochs: range, data: Any = None
) -> None:
    """The loop of a Distiller application."""
    data = data or batches()
    total = len(data)
    for epoch in epochs:
        scheduler.on_epoch_begin(epoch)
        for minibatch, (x, y) in enumerate(data):
            scheduler.on_minibatch_begin(epoch, minibatch, total)
            loss = nn.functional.cross_entropy(scheduler.model(x), y)
            loss = scheduler.before_backward_pass(epoch, minibatch, total, loss)
            optimizer.zero_grad()
            loss.backward()
            scheduler.before_parameter_optimization(epoch, minibatch, total)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, minibatch, total)
        scheduler.on_epoch_end(epoch, {"min": 1.0, "max": 0.5})


def through_a_file(state: Any) -> Any:
    """Saved, and loaded as torch loads by default: plain data and tensors only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def zeros(tensor: Tensor) -> int:
    return int((tensor == 0).sum())
