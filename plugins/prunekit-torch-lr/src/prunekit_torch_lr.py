"""Every learning-rate scheduler of torch.optim.lr_scheduler by its name: whatever the installed torch has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import PlainValidator
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from prunekit import ArgumentError, hookimpl
from prunekit.components.arguments import check_arguments
from prunekit.errors import did_you_mean


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


def _maker(value: Any) -> Any:
    if not (callable(value) or isinstance(value, dict)):
        raise ValueError("must be a mapping with a scheduler's 'class' and its keys")
    return value


Factors = Annotated[Callable[[int], float] | list[Callable[[int], float]], PlainValidator(_functions)]
"""A function from the epoch to a factor, or one for each of the optimizer's groups."""
Makers = list[Annotated[dict[str, Any] | Callable[[Optimizer], LRScheduler], PlainValidator(_maker)]]
"""Schedulers by `class` and keys, or functions from an optimizer to one: `partial(ExponentialLR, gamma=0.9)`."""


class LambdaLR(lr_scheduler.LambdaLR):
    """lr(t) = base · lr_lambda(t), from schedules written in Python."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Factors, last_epoch: int = -1) -> None:
        super().__init__(optimizer, lr_lambda, last_epoch)


class MultiplicativeLR(lr_scheduler.MultiplicativeLR):
    """lr(t) = lr(t - 1) · lr_lambda(t), from schedules written in Python."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Factors, last_epoch: int = -1) -> None:
        super().__init__(optimizer, lr_lambda, last_epoch)


class SequentialLR(lr_scheduler.SequentialLR):
    """One scheduler after the other, the next from each of `milestones` on."""

    def __init__(self, optimizer: Optimizer, schedulers: Makers, milestones: list[int], last_epoch: int = -1) -> None:
        super().__init__(optimizer, _made(schedulers, optimizer), milestones, last_epoch)


class ChainedScheduler(lr_scheduler.ChainedScheduler):
    """All schedulers at once, each multiplying what the others leave."""

    def __init__(self, optimizer: Optimizer, schedulers: Makers) -> None:
        super().__init__(_made(schedulers, optimizer), optimizer)


def _made(schedulers: Makers, optimizer: Optimizer) -> list[LRScheduler]:
    return [
        _from_keys(each, optimizer, index) if isinstance(each, Mapping) else each(optimizer)
        for index, each in enumerate(schedulers)
    ]


def _from_keys(keys: Mapping[str, Any], optimizer: Optimizer, index: int) -> LRScheduler:
    """One of torch's schedulers from its `class` and the arguments of its constructor."""
    place, arguments = ("schedulers", index), {key: value for key, value in keys.items() if key != "class"}
    name, known = keys.get("class"), _schedulers()
    if not isinstance(name, str) or name not in known:
        hint = did_you_mean(str(name), known)
        raise ArgumentError(*place, message=f"'class' must be one of torch's schedulers, got {name!r}{hint}")
    for wrong in check_arguments(known[name], "lr_scheduler", arguments):
        raise ArgumentError(*place, *wrong.keys, message=wrong.message)
    try:
        made: LRScheduler = known[name](optimizer, **arguments)
    except ArgumentError as error:
        raise ArgumentError(*place, *error.keys, message=error.message) from error
    except (TypeError, ValueError) as error:
        raise ArgumentError(*place, message=f"{name} refuses its arguments: {error}") from error
    return made
