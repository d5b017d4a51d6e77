"""What a training run is given: a model with its optimizer, data and loss; and how good the model is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from prunekit.training.results import Evaluation


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

    @property
    def steps_per_epoch(self) -> int:
        """How many steps the optimizer takes in an epoch; 0 where the loader has no length."""
        try:
            return len(self.train_loader)
        except TypeError:
            return 0


@torch.no_grad()
def evaluate(application: Application) -> Evaluation:
    """The mean loss over the test loader, and the accuracy where targets are classes. Waits for the device once."""
    application.model.eval()
    device = device_of(application.model)
    loss, right = torch.zeros((), device=device), torch.zeros((), dtype=torch.long, device=device)
    samples = answers = 0
    for inputs, targets in application.test_loader:
        inputs, targets = to_device(inputs, device), to_device(targets, device)
        outputs = application.model(inputs)
        number = len(targets) if isinstance(targets, Tensor) and targets.dim() else 1
        # Weighted, since the last batch may be smaller.
        loss += application.loss(outputs, targets) * number
        samples += number
        if _are_classes(outputs, targets):
            right += (outputs.argmax(1) == targets).sum()
            answers += targets.numel()
    mean = float(loss) / samples if samples else math.nan
    return Evaluation(mean, int(right) / answers if answers else None)


def device_of(model: Module) -> torch.device:
    """Where a model's first parameter is."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def to_device(data: Any, device: torch.device) -> Any:
    """Tensors, and those in mappings, lists and tuples, on a device; the rest as it is."""
    if isinstance(data, Tensor):
        return data.to(device, non_blocking=True)
    if isinstance(data, Mapping):
        return {key: to_device(value, device) for key, value in data.items()}
    # Not isinstance: a named tuple can't be made of one iterable.
    return type(data)(to_device(value, device) for value in data) if type(data) in (list, tuple) else data


def _are_classes(outputs: Any, targets: Any) -> bool:
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or targets.is_floating_point():
        return False
    return outputs.dim() > 1 and (outputs.shape[0], *outputs.shape[2:]) == tuple(targets.shape)
