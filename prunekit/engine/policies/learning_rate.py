"""Policies of LR schedulers: the learning rate of the next epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from prunekit.components.effects import Effect, SetLearningRates
from prunekit.components.kinds import LR_SCHEDULER
from prunekit.engine.learning_rate import LearningRateSchedule
from prunekit.engine.policies.policy import Policy
from prunekit.progress import Progress


@dataclass(eq=False)
class LRPolicy(Policy):
    """Sets the learning rate of the next epoch when an active one ends, and of epoch 0 before it begins."""

    kind = LR_SCHEDULER
    component: LearningRateSchedule

    def hooks(self, epoch: int) -> Iterable[tuple[str, Callable[..., Any]]]:
        if not self.window.is_active(epoch):
            return
        if epoch == 0 and not self.component.takes_metrics:
            yield "on_epoch_begin", self.on_epoch_begin
        yield "on_epoch_end", self.on_epoch_end

    def on_epoch_begin(self) -> Effect:
        return SetLearningRates(self.component.at(0))

    def on_epoch_end(self, optimizer: Optimizer, progress: Progress, metrics: Mapping[str, float] | None) -> Effect:
        if self.component.takes_metrics:
            return SetLearningRates(self.component.after(metrics, optimizer))
        return SetLearningRates(self.component.at(progress.epoch + 1))
