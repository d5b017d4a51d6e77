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
    """Vetoes each step that would prune more than is pruned now, while the last metric is out of bounds.

    Exactly one of the two bounds is given.

    Args:
        floor: what the metric `max`, such as accuracy, must at least be.
        ceiling: what the metric `min`, such as validation loss, may at most be.
    """

    floor: Bound | None = None
    ceiling: Bound | None = None

    def __post_init__(self) -> None:
        if self.floor is None and self.ceiling is None:
            raise ArgumentError(message="AccuracyGuard needs 'floor' (for the metric 'max') or 'ceiling' (for 'min')")
        if self.floor is not None and self.ceiling is not None:
            raise ArgumentError("ceiling", message=f"must not stand beside floor {self.floor}, got {self.ceiling}")
        self._last: tuple[int, float] | None = None

    @hookimpl
    def on_epoch_end(self, metrics: Mapping[str, float] | None, progress: Progress) -> None:
        key = "max" if self.ceiling is None else "min"
        if metrics is None or key not in metrics:
            given = "none" if not metrics else f"only {', '.join(map(repr, metrics))}"
            how = f"scheduler.report({key}=…) before it ends, or scheduler.on_epoch_end(epoch, metrics={{{key!r}: …}})"
            raise PrunekitError(f"AccuracyGuard needs the metric {key!r} of each epoch, got {given}; call {how}")
        self._last = progress.epoch, float(metrics[key])

    @hookimpl
    def veto_pruning(self, masks: Mapping[str, Tensor], proposed: Mapping[str, Tensor]) -> str | None:
        reason = self._reason()
        return reason if reason and prunes_more(masks, proposed) else None

    def _reason(self) -> str | None:
        """Why nothing more may be pruned; NaN, of a network that has diverged, is out of every bound."""
        if self._last is None:
            return None
        epoch, value = self._last
        if self.floor is not None and not value >= self.floor:
            return f"metric 'max' was {value} after epoch {epoch}, below the floor {self.floor}"
        if self.ceiling is not None and not value <= self.ceiling:
            return f"metric 'min' was {value} after epoch {epoch}, above the ceiling {self.ceiling}"
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last = state["last"]


def prunes_more(masks: Mapping[str, Tensor], proposed: Mapping[str, Tensor]) -> bool:
    """Whether a weight that is kept now would be pruned."""
    return any(bool(_newly_pruned(masks.get(name), mask).any()) for name, mask in proposed.items())


def _newly_pruned(before: Tensor | None, proposed: Tensor) -> Tensor:
    return ~proposed if before is None else before.to(proposed.device) & ~proposed
