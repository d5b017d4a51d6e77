"""Policies of LR schedulers: the learning rate of the next epoch, or of the next step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from prunekit.components.effects import Effect, SetLearningRates
from prunekit.components.kinds import LR_SCHEDULER
from prunekit.engine.checked import Checked, GivenModel
from prunekit.engine.policies.policy import Policy
from prunekit.engine.problems import Problems
from prunekit.engine.rates.schedule import LearningRateSchedule, jump_between
from prunekit.model.known_optimizers import KnownOptimizers
from prunekit.model.optimizer import WITHOUT_RATE, Groups, groups_of
from prunekit.progress import Progress, StepsPerEpoch


@dataclass(eq=False)
class LRPolicy(Policy):
    """Sets the learning rate of the next epoch, or step, when an active one ends.

    At a time of 0 also that of the epoch, or step, which begins: when the run does and, with `relative`, when the
    window opens.

    Attributes:
        relative: time is counted from the window's opening, not from the start of the run.
        takes_over: its time begins where the window of another such policy ends.
        jump_is_told: it has been said that the rate jumps when the window opens.
        optimizers: whose groups it sets.
    """

    kind = LR_SCHEDULER
    component: LearningRateSchedule
    relative: bool = False
    takes_over: bool = False
    jump_is_told: bool = False
    optimizers: KnownOptimizers | None = None

    @classmethod
    def make_component(cls, component_class: type, arguments: Mapping[str, Any], groups: Groups) -> Any:
        """Its values as a function of time; the groups themselves are left alone."""
        return LearningRateSchedule(component_class, arguments, groups or None)

    @classmethod
    def bind(cls, checked: Checked, network: GivenModel | None, problems: Problems) -> Self:
        if network is not None and not network.optimizers:
            problems.add(checked.place(), "a learning rate needs an optimizer, and none was given")
        if network is not None:
            _must_have_rates(groups_of(network.optimizers), checked, problems)
        policy = super().bind(checked, network, problems)
        policy.relative = checked.args.relative
        if policy.component.takes_metrics:
            _must_suit_metrics(policy, checked, problems)
        return policy

    # When?

    @cached_property
    def opens_late(self) -> bool:
        """Whether time has passed since the start of the run, and is counted, when the window opens."""
        return not self.relative and not self.window.opens_at_start

    @cached_property
    def first_time(self) -> int:
        """The time whose values it sets first."""
        opening = self.window.opening
        return self._time_after(opening._replace(stepped=True)) if self.opens_late else self._time(opening)

    @cached_property
    def last_time(self) -> int:
        """The time whose values it sets last."""
        return self._time_after(self.window.closing._replace(stepped=True))

    def time_within(self, epochs: int, steps_per_epoch: StepsPerEpoch = 0) -> int:
        """The time that it comes to, at most, in a run of this many epochs."""
        return max(self.window.time_within(epochs, steps_per_epoch) - self._start, 0)

    def _time(self, progress: Progress) -> int:
        return self.window.time(progress) - self._start

    def _time_after(self, progress: Progress) -> int:
        return self.window.time_after(progress) - self._start

    @cached_property
    def _start(self) -> int:
        return self.window.time(self.window.opening) if self.relative else 0

    # What is set

    def lacks(self, metrics: Mapping[str, float] | None) -> str:
        lacks = self.component.lacks(metrics)
        return f"{self.origin}: {lacks}" if lacks else ""

    def hooks(self, progress: Progress) -> Iterable[tuple[str, Callable[..., Any]]]:
        # As long as it is open, not only while it is active: in steps the bus would be changed with each of them.
        if not self.window.is_open(progress):
            return
        if self.component.takes_metrics:
            yield "on_epoch_end", self.set_after_metrics  # the one event that brings metrics
            return
        if self._time(progress) == 0:
            yield self.window.begin_hook, self.set_now
        yield self.window.end_hook, self.set_next

    def values(self, time: int) -> list[dict[str, Any]]:
        """The values of each group at a time."""
        return self.component.at(time, str(self.index), takes_over=self.takes_over)

    def set_now(self, progress: Progress) -> Effect | None:
        is_first = self.window.begins(progress) and self._time(progress) == 0
        return self._set(0, progress) if is_first else None

    def set_next(self, progress: Progress) -> Effect | None:
        # Gradients may still be accumulated, or the step have been skipped: then it is not over.
        is_over = self.window.is_active(progress) and self.window.time_after(progress) > self.window.time(progress)
        return self._set(self._time_after(progress), progress) if is_over else None

    def _set(self, time: int, progress: Progress) -> Effect:
        self.component.follow(self._groups)
        values = self.values(time)
        if time == self.first_time and self.opens_late and not self.jump_is_told:
            self._tell_jump(self._groups, values, progress)
        is_routine = self.window.unit == "step" and time not in (self.first_time, self.last_time)
        return SetLearningRates(values, "debug" if is_routine else "info")

    def _tell_jump(self, groups: Groups, values: Groups, progress: Progress) -> None:
        self.jump_is_told = True
        if jump := jump_between(groups, values):
            self._say("learning rate jumps", progress, before=jump[0], after=jump[1], advice="args: {relative: true}")

    # A scheduler that looks at metrics

    def set_after_metrics(self, progress: Progress, metrics: Mapping[str, float] | None) -> Effect | None:
        if not self.window.is_active(progress):
            return None
        self.component.follow(self._groups)
        values = self.component.after(metrics, self._groups)
        rates = [float(group["lr"]) for group in self._groups]
        # Where it leaves the rates alone they do not become its own: it takes what it finds.
        return SetLearningRates(values) if rates != [group["lr"] for group in values] else None

    @property
    def _groups(self) -> Groups:
        """The groups whose rates are the schedule's."""
        return self.optimizers.groups if self.optimizers is not None else []

    def _say(self, event: str, progress: Progress, **values: Any) -> None:
        self.warn(event, **self.origin._asdict(), **progress.trace_keys(), **values)


def _must_have_rates(groups: Groups, checked: Checked, problems: Problems) -> None:
    """Refuse an optimizer that finds its rate itself."""
    for index, group in enumerate(groups):
        if group.get("lr") is None:
            problems.add(checked.place(), f"of group {index}: {WITHOUT_RATE}")


def _must_suit_metrics(policy: LRPolicy, checked: Checked, problems: Problems) -> None:
    """What of a policy does not go together with metrics, which come when an epoch ends."""
    name = checked.made.spec.class_name
    if policy.window.end_hook != "on_epoch_end":
        what = f"{name} looks at metrics, which come when an epoch ends: its window must be in epochs"
        problems.add(checked.place(), what)
    if policy.relative:
        what = f"no effect: {name} counts its own active epochs, and starts from the rate that it finds"
        problems.warn(checked.place("args", "relative"), what)
