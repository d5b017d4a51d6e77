"""Policies of LR schedulers: the learning rate of the next epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch.optim import Optimizer

from prunekit.components.effects import Effect, SetLearningRates
from prunekit.components.kinds import LR_SCHEDULER
from prunekit.engine.build.parts import Checked, Network
from prunekit.engine.build.problems import Problems
from prunekit.engine.learning_rate import LearningRateSchedule
from prunekit.engine.policies.policy import Policy
from prunekit.progress import Progress


@dataclass(eq=False)
class LRPolicy(Policy):
    """Sets the learning rate of the next epoch when an active one ends, and of epoch 0 before it begins."""

    kind = LR_SCHEDULER
    component: LearningRateSchedule

    @classmethod
    def make_component(cls, component_class: type, arguments: Mapping[str, Any], optimizer: Optimizer | None) -> Any:
        """Its values as a function of the epoch; the optimizer itself is left alone."""
        return LearningRateSchedule(component_class, arguments, optimizer)

    @classmethod
    def bind(cls, checked: Checked, network: Network | None, problems: Problems) -> Self:
        if network is not None and network.optimizer is None:
            problems.say(checked.place(), "a learning rate needs an optimizer, and none was given")
        return super().bind(checked, network, problems)

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
