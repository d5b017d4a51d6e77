"""Every learning-rate scheduler of torch.optim.lr_scheduler by its name: whatever the installed torch has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import PlainValidator
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from prunekit import hookimpl


@hookimpl
def find_component(kind: str, name: str) -> type | None:
    """The scheduler that torch has under this name."""
    return _schedulers().get(name) if kind == "lr_scheduler" else None


@hookimpl
def list_components(kind: str) -> list[str]:
    """The names of torch's schedulers."""
    return sorted(_schedulers()) if kind == "lr_scheduler" else []


def _schedulers() -> dict[str, type]:
    offered = {name: cls for name, cls in vars(lr_scheduler).items() if not name.startswith("_") and _is_scheduler(cls)}
    from_python = (LambdaLR, MultiplicativeLR, SequentialLR, ChainedScheduler)
    return offered | {cls.__name__: cls for cls in from_python}


def _is_scheduler(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, LRScheduler) and cls is not LRScheduler


def _functions(value: Any) -> Any:
    if not all(callable(item) for item in (value if isinstance(value, list) else [value])):
        raise ValueError("must be Python functions, which YAML can't hold: write the schedule in Python")
    return value


Factors = Annotated[Callable[[int], float] | list[Callable[[int], float]], PlainValidator(_functions)]
"""A function from the epoch to a factor, or one for each of the optimizer's groups."""
Makers = Annotated[Sequence[Callable[[Optimizer], LRScheduler]], PlainValidator(_functions)]
"""Functions from an optimizer to its scheduler, such as `functools.partial(ExponentialLR, gamma=0.9)`."""


class LambdaLR(lr_scheduler.LambdaLR):
    """lr(t) = base · lr_lambda(t), from schedules written in Python."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Factors, last_epoch: int = -1) -> None:
        super().__init__(optimizer, lr_lambda, last_epoch)


class MultiplicativeLR(lr_scheduler.MultiplicativeLR):
    """lr(t) = lr(t - 1) · lr_lambda(t), from schedules written in Python."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Factors, last_epoch: int = -1) -> None:
        super().__init__(optimizer, lr_lambda, last_epoch)


class SequentialLR(lr_scheduler.SequentialLR):
    """One scheduler after the other, the next from each of `milestones` on, from schedules written in Python."""

    def __init__(self, optimizer: Optimizer, schedulers: Makers, milestones: list[int], last_epoch: int = -1) -> None:
        super().__init__(optimizer, [make(optimizer) for make in schedulers], milestones, last_epoch)


class ChainedScheduler(lr_scheduler.ChainedScheduler):
    """All schedulers at once, each multiplying what the others leave, from schedules written in Python."""

    def __init__(self, optimizer: Optimizer, schedulers: Makers) -> None:
        super().__init__([make(optimizer) for make in schedulers], optimizer)
