"""How good an application's model is on its test loader."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from prunekit.training.application import Application, device_of
from prunekit.training.complaints import blaming
from prunekit.training.losses import loss_of, metrics_of
from prunekit.training.results import Evaluation

_END = object()


@torch.no_grad()
def evaluate(application: Application) -> Evaluation:
    """The mean loss over the test loader, and the accuracy where targets are classes. Waits for the device at the end.

    Each mean is over samples, since the last batch may be smaller.
    """
    application.model.eval()
    device = device_of(application.model)
    sums = Sums()
    right, samples, answers = torch.zeros((), dtype=torch.long, device=device), 0, 0
    for batch in batches_of(application.test_loader, "test_loader"):
        loss = loss_of(application, batch, device, "test_loader")
        sums.add({"loss": loss.total}, loss.samples)
        sums.add({f"loss {name}": part for name, part in loss.parts.items()}, loss.samples)
        sums.add(
            {f"metric {name}": value for name, value in metrics_of(application, batch, device).items()}, loss.samples
        )
        samples += loss.samples
        if _are_classes(loss.outputs, loss.targets):
            right += (loss.outputs.argmax(1) == loss.targets).sum()
            answers += loss.targets.numel()
    means = sums.over(samples)
    metrics = {name.removeprefix("metric "): mean for name, mean in means.items() if name.startswith("metric ")}
    parts = {name.removeprefix("loss "): mean for name, mean in means.items() if name.startswith("loss ")}
    accuracy = int(right) / answers if answers else None
    return Evaluation(means.get("loss", math.nan), metrics.pop("accuracy", accuracy), parts, metrics)


class Sums:
    """Sums by name that stay on the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, float | Tensor] = {}

    def add(self, values: dict[str, Any], weight: int = 1) -> None:
        """Add numbers or tensors, each so many times."""
        for name, value in values.items():
            value = value.detach() if isinstance(value, Tensor) else value
            value = value if weight == 1 else value * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def tensor(self, name: str) -> Tensor:
        """One of them, as it is on the device."""
        return torch.as_tensor(self._sums[name])

    def over(self, number: int) -> dict[str, float]:
        """Each, divided by a number. Waits for the device."""
        return {name: float(value) / number for name, value in self._sums.items()} if number else {}


def batches_of(loader: Iterable[Any], part: str) -> Iterator[Any]:
    """The batches of an application's loader; what it raises gets a note that says so."""
    with blaming(part):
        batches = iter(loader)
    while True:
        with blaming(part):
            batch = next(batches, _END)
        if batch is _END:
            return
        yield batch


def _are_classes(outputs: Any, targets: Any) -> bool:
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or targets.is_floating_point():
        return False
    return outputs.dim() > 1 and (outputs.shape[0], *outputs.shape[2:]) == tuple(targets.shape)
