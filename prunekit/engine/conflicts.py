"""What a schedule would do, and when: policies that never act, that collide, or that outlive their scheduler."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from prunekit.components.curves import value_at
from prunekit.components.kinds import QUANTIZER
from prunekit.components.pruner import Gradual
from prunekit.engine.policies import LRPolicy, Policy, QuantizationPolicy
from prunekit.errors import Problem, dotted
from prunekit.progress import Progress, StepsPerEpoch, Window
from prunekit.schedule.schedule import Schedule

Length = tuple[int, StepsPerEpoch]
"""Of a run: how many epochs it has, and how many steps of the optimizer each of them (0: unknown)."""


def idle_policies(schedule: Schedule, epochs: int | None, steps_per_epoch: StepsPerEpoch = 0) -> list[Problem]:
    """Policies whose window opens after a run of this many epochs is over; of windows in steps if that can be told."""
    return [
        schedule.source.problem(("policies", policy.place), f"never acts: {why}")
        for policy in schedule.policies
        if epochs is not None and (why := policy.window.missed_by(epochs, steps_per_epoch))
    ]


def exhausted(
    schedule: Schedule, policies: Iterable[Policy], epochs: int | None, steps_per_epoch: StepsPerEpoch = 0
) -> list[Problem]:
    """LR schedulers whose own plan (`total_steps`) is shorter than a run of this many epochs."""
    found = []
    for policy in policies:
        if isinstance(policy, LRPolicy) and epochs is not None:
            try:
                policy.component.rehearse(policy.time_within(epochs, steps_per_epoch))
            except Exception as error:
                path = ("policies", policy.index)
                message = f"{policy.origin.component} does not last for the run: {type(error).__name__}: {error}"
                found.append(schedule.source.problem(path, message))
    return found


def endings(
    schedule: Schedule, policies: Sequence[Policy], epochs: int | None, steps_per_epoch: StepsPerEpoch = 0
) -> list[Problem]:
    """How a run of this many epochs ends otherwise than windows promise: a value not reached, a float model."""
    if epochs is None:
        return []
    length = epochs, steps_per_epoch
    ends = [(policy, _cut_off(policy, length) or _float(policy, policies, length)) for policy in policies]
    return [schedule.source.problem(("policies", policy.index), message) for policy, message in ends if message]


def _cut_off(policy: Policy, length: Length) -> str:
    """What a gradual pruner, and arguments along a curve, come to in a run that is shorter than their window."""
    last = policy.window.cut_off_by(*length)
    if last is None:
        return ""
    comes_to = [
        f"{what} {reached:.4g} and not to {asked:.4g}"
        for what, reached, asked in _ends(policy, last)
        if reached != asked
    ]
    told = f"{policy.name!r} comes to {', to '.join(comes_to)}"
    return f"a run of {length[0]} epochs cuts it off: {told}" if comes_to else ""


def _ends(policy: Policy, last: Progress) -> Iterator[tuple[str, float, float]]:
    """What changes over a policy's window, its value at the last active moment of the run, and at the window's end."""
    window, closing = policy.window, policy.window.closing
    if isinstance(policy.component, Gradual):
        at = policy.component.sparsity_at
        yield "sparsity", at(window, last), at(window, closing)
    for keys, change in policy.changes.items():
        reached, asked = (value_at(change, window.fraction(moment)) for moment in (last, closing))
        yield dotted(keys), reached, asked


def _float(policy: Policy, policies: Iterable[Policy], length: Length) -> str:
    """Why what a quantizer works on is not quantized when the run ends."""
    if not isinstance(policy, QuantizationPolicy) or policy.window.missed_by(*length):
        return ""
    lasting = [p for p in policies if p.kind is QUANTIZER and not p.window.over_before(*length)]
    taken_over = {name for other in lasting for name in _decided(other)}
    over = policy.window.over_before(*length)
    if not over or (set(_decided(policy)) <= taken_over if _decided(policy) else lasting):
        return ""
    return f"is over before the run is, and the result will be a float model: {over}"


def missed(policies: Iterable[Policy], skipped: range) -> list[str]:
    """The policies whose window closes within epochs that the loop has passed over."""
    # Before every step: a window in steps is asked about epochs alone, and none of its steps have been passed over.
    moments = [Progress(epoch, step=-1) for epoch in skipped]
    return [str(policy.origin) for policy in policies if any(policy.window.is_last(moment) for moment in moments)]


def without_metrics(policies: Iterable[Policy], metrics: Mapping[str, float] | None, now: Progress) -> list[str]:
    """What policies to come will need when their epochs end, and does not come with these metrics."""
    later = [policy for policy in policies if not policy.window.is_open(now) and not policy.window.is_past(now)]
    return [lacks for policy in later if (lacks := policy.lacks(metrics))]


@dataclass(frozen=True)
class Clash:
    """Two policies of which only one may act at a time: they decide about the same things.

    Attributes:
        first, second: in the order of the schedule.
        what: the first parameter that both decide about; empty of learning rates.
        schedule: which says where they stand.
    """

    first: Policy
    second: Policy
    what: str
    schedule: Schedule

    @property
    def in_one_unit(self) -> bool:
        """Whether both count epochs, or both steps: when they meet is known, whatever happens in training."""
        return self.first.window.unit == self.second.window.unit

    def when(self, steps_per_epoch: StepsPerEpoch = 0) -> str | None:
        """When they first meet, in words; None if they never do, and if that can't be told."""
        can_be_told = self.in_one_unit or steps_per_epoch
        return _in_force(self.first).overlap(_in_force(self.second), steps_per_epoch) if can_be_told else None

    def happens(self, now: Progress) -> bool:
        """Whether both act now."""
        return _in_force(self.first).is_active(now) and _in_force(self.second).is_active(now)

    def problem(self, when: str) -> Problem:
        """They do meet."""
        return self._problem(f"{self._said} in {when} too; two policies may not")

    def warning(self) -> Problem:
        """They may."""
        units = f"one of them in {self.first.window.unit}s, the other in {self.second.window.unit}s"
        return self._problem(f"{self._said} too, {units}; training stops if both come at one time")

    @property
    def _said(self) -> str:
        words = (f"{self.first.origin.policy} ({self.first.name!r})", self.first.kind.exclusive, self.what)
        return " ".join(word for word in words if word)

    def _problem(self, message: str) -> Problem:
        return self.schedule.source.problem(("policies", self.second.index, self.second.kind.name), message)


def collisions(schedule: Schedule, policies: Sequence[Policy], steps_per_epoch: StepsPerEpoch = 0) -> list[Problem]:
    """Two pruners or two quantizers of one parameter, or two LR schedulers, at one time, as far as that is known."""
    found = [(clash, clash.when(steps_per_epoch)) for clash in _clashes(schedule, policies)]
    return [clash.problem(when) for clash, when in found if when is not None]


def undecided(schedule: Schedule, policies: Sequence[Policy]) -> list[Clash]:
    """Those that only training decides: one acts in epochs and the other in steps, of which some may be skipped."""
    return [clash for clash in _clashes(schedule, policies) if not clash.in_one_unit]


def _clashes(schedule: Schedule, policies: Sequence[Policy]) -> Iterator[Clash]:
    for first, second in combinations(policies, 2):
        if first.kind is second.kind and first.kind.exclusive:
            shared = [name for name in _decided(first) if name in _decided(second)]
            if shared or not first.kind.owns_parameters:
                yield Clash(first, second, repr(shared[0]) if shared else "", schedule)


def _decided(policy: Policy) -> list[str]:
    """The names of all that a policy decides about."""
    return [*policy.parameters, *(policy.activations if isinstance(policy, QuantizationPolicy) else ())]


def _in_force(policy: Policy) -> Window:
    """When a policy decides; a quantizer does between its active epochs too."""
    return policy.window.without_gaps() if policy.kind is QUANTIZER else policy.window
