"""The loss of a batch, and what else an application says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from prunekit.errors import ApplicationError
from prunekit.training.application import Application, to_device
from prunekit.training.complaints import blaming, described, must_be_pair, must_be_scalar, must_have_gradient, place_of


@dataclass(frozen=True)
class BatchLoss:
    """What came of a batch.

    Attributes:
        total: what is trained on.
        parts: what it is the sum of, by name; empty where the application gave a scalar.
        samples: how many there were.
        outputs, targets: of the model, where the application has `loss`.
    """

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    samples: int = 1
    outputs: Any = None
    targets: Any = None


def loss_of(application: Application, batch: Any, device: torch.device, loader: str) -> BatchLoss:
    """The loss of a batch that `loader` gave.

    Raises:
        ApplicationError: the batch or the loss is not of the form that it must have.
        Exception: what the application raised, with a note that says in which part of it.
    """
    if application.step is not None:
        batch = to_device(batch, device)
        with application.precision(device), blaming("step"):
            value = application.step(application.model, batch)
        total, parts = _sum_of(value, application.step)
        loss = BatchLoss(total, parts, samples_in(batch))
    else:
        loss = _of_pair(application, to_device(must_be_pair(batch, loader), device), device)
    if torch.is_grad_enabled():
        must_have_gradient(loss.total, *_source(application))
    return loss


def go_forward(application: Application, batch: Any, device: torch.device, loader: str) -> None:
    """Let a batch flow through the model, for those who look on."""
    if application.step is not None:
        loss_of(application, batch, device, loader)
        return
    inputs = to_device(must_be_pair(batch, loader)[0], device)
    with application.precision(device), blaming("model"):
        application.model(inputs)


def metrics_of(application: Application, batch: Any, device: torch.device) -> Mapping[str, float | Tensor]:
    """What the application's own `metrics` says of a batch.

    Raises:
        ApplicationError: it gives no numbers by name.
    """
    if application.metrics is None:
        return {}
    with application.precision(device), blaming("metrics"):
        values = application.metrics(application.model, to_device(batch, device))
    for name, value in values.items() if isinstance(values, Mapping) else [("", values)]:
        is_number = isinstance(value, int | float) or (isinstance(value, Tensor) and value.dim() == 0)
        if not name or not is_number:
            what = f"must give numbers or scalar tensors by name, got {described(value)}"
            raise ApplicationError("metrics", what + f" as {name!r}" * bool(name), place_of(application.metrics))
    return values


def must_be_finite(loss: BatchLoss, application: Application) -> None:
    """Whether a first loss is a number at all. Waits for the device.

    Raises:
        ApplicationError: it is nan or infinite.
    """
    part, function = _source(application)
    for name, value in (loss.parts or {"": loss.total}).items():
        if not bool(torch.isfinite(value)):
            which = f"{name!r} " if name else ""
            what = f"{which}is {float(value.detach())} in the first mini-batch"
            raise ApplicationError(part, what, place_of(function))


def samples_in(batch: Any) -> int:
    """The length of the first tensor in a batch, 1 where there is none."""
    return next((len(tensor) for tensor in _tensors(batch) if tensor.dim()), 1)


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    is_record = is_dataclass(batch) and not isinstance(batch, type)
    holder = batch.values() if isinstance(batch, Mapping) else vars(batch).values() if is_record else batch
    if isinstance(batch, Mapping | list | tuple) or is_record:
        for value in holder:
            yield from _tensors(value)


def _of_pair(application: Application, pair: tuple[Any, Any], device: torch.device) -> BatchLoss:
    inputs, targets = pair
    assert application.loss is not None
    with application.precision(device):
        with blaming("model"):
            outputs = application.model(inputs)
        with blaming("loss"):
            total = application.loss(outputs, targets)
    samples = len(targets) if isinstance(targets, Tensor) and targets.dim() else 1
    return BatchLoss(must_be_scalar(total, "loss", application.loss), {}, samples, outputs, targets)


def _sum_of(value: object, step: Callable[..., Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
    if not isinstance(value, Mapping) or not value:
        return must_be_scalar(value, "step", step), {}
    parts = {str(name): must_be_scalar(part, "step", step, str(name)) for name, part in value.items()}
    return reduce(add, parts.values()), parts


def _source(application: Application) -> tuple[str, Callable[..., Any] | None]:
    return ("loss", application.loss) if application.step is None else ("step", application.step)
