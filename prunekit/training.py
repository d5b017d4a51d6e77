"""The loop behind `prunekit train`, also usable from Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.utils.data import DataLoader


@dataclass
class Application:
    """All that a training run needs besides its schedule.

    Attributes:
        model: the network.
        optimizer: over the model's parameters.
        train_loader: batches of (inputs, targets).
        test_loader: batches to evaluate on, likewise.
        loss: (outputs, targets) -> scalar.
    """

    model: Module
    optimizer: Optimizer
    train_loader: DataLoader[Any]
    test_loader: DataLoader[Any]
    loss: Callable[[Tensor, Tensor], Tensor]


def train() -> None: ...
