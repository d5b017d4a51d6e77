"""Policies of LR schedulers: the learning rate of the next epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch.optim import Optimizer

from prunekit.components.effects import Effect, SetLearningRates
from prunekit.components.kinds import LR_SCHEDULER
from prunekit.engine.checked import Checked, GivenModel
from prunekit.engine.learning_rate import LearningRateSchedule
from prunekit.engine.policies.policy import Policy
from prunekit.engine.problems import Problems
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
    def bind(cls, checked: Checked, network: GivenModel | None, problems: Problems) -> Self:
        if network is not None and network.optimizer is None:
            problems.add(checked.place(), "a learning rate needs an optimizer, and none was given")
        return super().bind(checked, network, problems)

    @property
    def takes_metrics(self) -> bool:
        return self.component.takes_metrics

    def hooks(self, progress: Progress) -> Iterable[tuple[str, Callable[..., Any]]]:
        if not self.window.is_active(progress):
            return
        if self.component.takes_metrics:
            yield "on_epoch_end", self.set_after_metrics  # the one event that brings metrics
            return
        if self.window.time(progress) == 0:
            yield self.window.begin_hook, self.set_now
        yield self.window.end_hook, self.set_next

    def set_now(self, progress: Progress) -> Effect:
        return SetLearningRates(self.component.at(self.window.time(progress)))

    def set_next(self, progress: Progress) -> Effect:
        return SetLearningRates(self.component.at(self.window.time_after(progress)))

    def set_after_metrics(self, optimizer: Optimizer, metrics: Mapping[str, float] | None) -> Effect:
        return SetLearningRates(self.component.after(metrics, optimizer))
