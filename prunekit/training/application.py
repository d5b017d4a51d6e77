"""What a training run is given: a model with its optimizers and data, and how it is trained on a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from prunekit.schedule.schedule import Schedule
from prunekit.scheduler import CompressionScheduler

Loss = Tensor | Mapping[str, Tensor]
"""A scalar, or the scalars by name that it is the sum of."""


@dataclass
class Application:
    """All that a training run needs besides its schedule.

    Either `loss` or `step` says what is trained on. Batches are put where the model is.

    Attributes:
        model: the network.
        optimizer: over the model's parameters. Of several, in a sequence, each steps after every backward pass. Several
            by name share no loss: `step` gives one for each, which trains the parameters of that optimizer alone; all
            of them step together.
        train_loader: the batches to train on; it has a length.
        test_loader: the batches to evaluate on.
        loss: (outputs, targets) -> scalar, where batches are pairs (inputs, targets) and the model takes the inputs.
        step: (model, batch) -> scalar, or scalars by name, whose sum is trained on; for any batch. In evaluation it is
            called too, without gradients.
        metrics: (model, batch) -> numbers by name, to evaluate with; the mean of each is told. `accuracy` takes the
            place of prunekit's own.
        accumulate: over how many mini-batches gradients are averaged for a step; the last of an epoch may have fewer.
        autocast: the type to compute in (mixed precision); for `torch.float16` gradients are scaled.
        clip_norm: what the norm of the gradients of each optimizer's parameters is kept below.
        ema_decay: evaluate an exponential moving average of the parameters, whose weight falls by this with each step.
            When training has ended it is in the model.
    """

    model: Module
    optimizer: Optimizer | Sequence[Optimizer] | Mapping[str, Optimizer]
    train_loader: Iterable[Any]
    test_loader: Iterable[Any]
    loss: Callable[[Any, Any], Tensor] | None = None
    step: Callable[[Module, Any], Loss] | None = None
    metrics: Callable[[Module, Any], Mapping[str, float | Tensor]] | None = None
    accumulate: int = 1
    autocast: torch.dtype | None = None
    clip_norm: float | None = None
    ema_decay: float | None = None

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        """Each optimizer by its name; one without a name by its place."""
        if isinstance(self.optimizer, Mapping):
            return self.optimizer
        several = self.optimizer if isinstance(self.optimizer, list | tuple) else [self.optimizer]
        return {str(place): optimizer for place, optimizer in enumerate(several)}

    @property
    def first_optimizer(self) -> Optimizer:
        """The one whose learning rate is shown."""
        return next(iter(self.optimizers.values()))

    def precision(self, device: torch.device) -> AbstractContextManager[object]:
        """What the model and the loss are computed in."""
        return nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)

    @property
    def steps_per_epoch(self) -> int:
        """How many steps the optimizers take in an epoch; 0 where the loader has no length."""
        try:
            minibatches = len(self.train_loader)  # type: ignore[arg-type]  # most have one
        except TypeError:
            return 0
        return -(-minibatches // self.accumulate)  # rounded up: the last step may have fewer


def scheduler_of(schedule: Schedule, application: Application, **options: Any) -> CompressionScheduler:
    """The scheduler of a run: it knows the application's model and each of its optimizers."""
    return CompressionScheduler(schedule, application.model, list(application.optimizers.values()), **options)


def device_of(model: Module) -> torch.device:
    """Where a model's first parameter is."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def to_device(data: Any, device: torch.device) -> Any:
    """Tensors and whatever has `.to`, and those in mappings, lists, tuples and dataclasses, on a device."""
    if isinstance(data, Tensor):
        return data.to(device, non_blocking=True)
    if callable(getattr(data, "to", None)):
        return data.to(device)
    if isinstance(data, Mapping):
        return {key: to_device(value, device) for key, value in data.items()}
    if is_dataclass(data) and not isinstance(data, type):
        moved = {f.name: to_device(getattr(data, f.name), device) for f in fields(data) if f.init}
        return replace(data, **moved)
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(to_device(value, device) for value in data))  # a named tuple is not made of one iterable
    return type(data)(to_device(value, device) for value in data) if type(data) in (list, tuple) else data
