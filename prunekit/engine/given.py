"""What a scheduler is given: of the right kind each, or what it should have been."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch.nn import Module

from prunekit.errors import PrunekitError, shortened
from prunekit.schedule.schedule import Schedule
from prunekit.trace import Trace


def must_be_of_their_kinds(schedule: object, model: object, trace: object, listeners: object) -> None:
    """Whether each may be what it is given as; optimizers are looked at elsewhere.

    Raises:
        PrunekitError: one is something else, such as the path of a schedule in the place of a schedule.
    """
    if not isinstance(schedule, Schedule):
        raise PrunekitError(f"schedule must be a Schedule, got {shortened(schedule)}{_way_in(schedule)}")
    if not isinstance(model, Module):
        raise PrunekitError(f"model must be a torch.nn.Module, got {shortened(model)}")
    if trace is not None and not isinstance(trace, Trace):
        hint = f"; Trace({str(trace)!r}) writes to that folder" if isinstance(trace, str | Path) else ""
        raise PrunekitError(f"trace must be a Trace, got {shortened(trace)}{hint}")
    if not isinstance(listeners, Iterable):
        raise PrunekitError(f"listeners must be a sequence of listeners, got {shortened(listeners)}")


def _way_in(schedule: object) -> str:
    """Which constructor takes it."""
    if isinstance(schedule, str | Path):
        return "; CompressionScheduler.from_yaml reads a file"
    return "; CompressionScheduler.from_dict takes a dict" if isinstance(schedule, Mapping) else ""
