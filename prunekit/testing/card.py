"""A plugin's method card holds what it promises: a training under the first schedule in a README."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from prunekit.schedule.schedule import Schedule
from prunekit.scheduler import CompressionScheduler
from prunekit.trace import Trace

_YAML = re.compile(r"```yaml\n(.*?)```", re.DOTALL)


def epochs_under_card(
    card: Path,
    model: Module,
    batch: tuple[Tensor, Tensor] | None,
    epochs: int,
    lr: float = 0.01,
    minibatches: int = 1,
) -> Iterator[CompressionScheduler]:
    """Train a classifier under a card's first schedule; the scheduler, at the end of each epoch.

    Args:
        card: the README.
        model: images or whatever it takes -> scores [n, classes], with the parameters that the schedule names.
        batch: inputs and classes, the same in every mini-batch; None: four random images [3, 6, 6], one of each class.
        epochs: the length of the run.
        lr: of SGD with momentum 0.9.
        minibatches: in each epoch.

    Raises:
        ValueError: there is no YAML block in the card.
    """
    found = _YAML.search(card.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{card.name} has no ```yaml block")
    inputs, classes = batch or (torch.randn(4, 3, 6, 6), torch.arange(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    schedule, silent = Schedule.from_text(found[1], card.name), Trace(level="error")
    scheduler: Any = CompressionScheduler(schedule, model, optimizer, trace=silent)
    for _ in scheduler.epochs(epochs):
        for _ in scheduler.minibatches(range(minibatches)):
            optimizer.zero_grad()
            scheduler.total_loss(nn.functional.cross_entropy(model(inputs), classes)).backward()
            optimizer.step()
        yield scheduler
