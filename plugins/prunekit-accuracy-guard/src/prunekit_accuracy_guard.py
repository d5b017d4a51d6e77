"""An accuracy guard: while the network is not good enough, nothing more is pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from prunekit import ArgumentError, Progress, PrunekitError, hookimpl

Bound = Annotated[float, Field(allow_inf_nan=False)]
"""A finite number."""


@dataclass
class AccuracyGuard:
    """Holds every pruner while the last metric is out of bounds: a step that would prune more is vetoed.

    Args:
        floor: what the metric `max`, such as accuracy, must at least be. Exactly one of the two is given.
        ceiling: what the metric `min`, such as validation loss, may at most be.
    """

    floor: Bound | None = None
    ceiling: Bound | None = None

    def __post_init__(self) -> None:
        if self.floor is None and self.ceiling is None:
            raise ArgumentError(message="needs 'floor' for the metric 'max' or 'ceiling' for the metric 'min'")
        if self.floor is not None and self.ceiling is not None:
            message = f"excludes 'ceiling': give one of them, got {self.floor} and {self.ceiling}"
            raise ArgumentError("floor", message=message)
        self._last: tuple[int, float] | None = None

    @hookimpl
    def on_epoch_end(self, metrics: Mapping[str, float] | None, progress: Progress) -> None:
        if self._metric not in (metrics or {}):
            given = ", ".join(map(repr, metrics or {})) or "none"
            calls = f"scheduler.report({self._metric}=…) or on_epoch_end(epoch, metrics={{{self._metric!r}: …}})"
            raise PrunekitError(f"AccuracyGuard needs the metric {self._metric!r} of each epoch, got {given}; call {calls}")
        assert metrics is not None
        self._last = progress.epoch, float(metrics[self._metric])

    @hookimpl
    def veto_pruning(self, masks: Mapping[str, Tensor], proposed: Mapping[str, Tensor]) -> str | None:
        if self._last is None or self._is_good(self._last[1]) or not prunes_more(masks, proposed):
            return None
        epoch, value = self._last
        bound = f"below the floor {self.floor}" if self.ceiling is None else f"above the ceiling {self.ceiling}"
        return f"metric {self._metric!r} was {value} after epoch {epoch}, {bound}"
