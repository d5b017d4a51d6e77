"""Holds sparsity while a metric is under a floor: nothing more is pruned until training has recovered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from prunekit import Progress, PrunekitError, hookimpl


@dataclass
class AccuracyGuard:
    """Vetoes each step that would prune more while the metric of the last epoch is under `floor`.

    Args:
        floor: the least value of the metric at which pruning goes on.
        metric: which of the metrics that the loop reports when an epoch ends; `max` is the one to maximise.
    """

    floor: float
    metric: str = "max"
    _last: tuple[int, float] | None = field(default=None, init=False, repr=False)

    @hookimpl
    def on_epoch_end(self, metrics: Mapping[str, float] | None, progress: Progress) -> None:
        if metrics is None or self.metric not in metrics:
            given = "none" if metrics is None else ", ".join(map(repr, metrics))
            raise PrunekitError(f"AccuracyGuard needs the metric {self.metric!r} at each epoch's end, got {given}")
        self._last = (progress.epoch, float(metrics[self.metric]))

    @hookimpl
    def veto_pruning(self, masks: Mapping[str, Tensor], proposed: Mapping[str, Tensor]) -> str | None:
        if self._last is None or self._last[1] >= self.floor or not _prunes_more(masks, proposed):
            return None
        epoch, value = self._last
        return f"{self.metric!r} was {value:g} after epoch {epoch}, under {self.floor:g}"

    def state_dict(self) -> dict[str, Any]:
        """The last metric and its epoch."""
        return {"last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._last = None if state["last"] is None else tuple(state["last"])


def _prunes_more(masks: Mapping[str, Tensor], proposed: Mapping[str, Tensor]) -> bool:
    """Whether a weight would be pruned that is kept now."""
    gone = {name: masks[name] & ~mask if name in masks else ~mask for name, mask in proposed.items()}
    return any(bool(mask.any()) for mask in gone.values())
