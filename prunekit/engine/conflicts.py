"""What a schedule would do, and when: policies that never act, that collide, or that outlive their scheduler."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from prunekit.components.kinds import QUANTIZER
from prunekit.components.pruner import Gradual
from prunekit.engine.policies import LRPolicy, Policy, QuantizationPolicy
from prunekit.errors import Problem
from prunekit.progress import Progress, Window
from prunekit.schedule.schedule import Schedule


def idle_policies(schedule: Schedule, epochs: int | None) -> list[Problem]:
    """Policies whose window opens after a run of this many epochs is over."""
    return [
        schedule.source.problem(("policies", policy.place), f"never acts: {why}")
        for policy in schedule.policies
        if epochs is not None and (why := policy.window.missed_by(epochs))
    ]


def exhausted(schedule: Schedule, policies: Iterable[Policy], epochs: int | None) -> list[Problem]:
    """LR schedulers whose own plan (`total_steps`) is shorter than a run of this many epochs."""
    found = []
    for policy in policies:
        if isinstance(policy, LRPolicy) and epochs is not None:
            try:
                policy.component.rehearse(policy.window.time_within(epochs))
            except Exception as error:
                path = ("policies", policy.index)
                message = f"{policy.origin.component} does not last for the run: {type(error).__name__}: {error}"
                found.append(schedule.source.problem(path, message))
    return found


def endings(schedule: Schedule, policies: Sequence[Policy], epochs: int | None) -> list[Problem]:
    """How a run of this many epochs ends otherwise than windows promise: a sparsity not reached, a float model."""
    if epochs is None:
        return []
    ends = [(policy, _cut_off(policy, epochs) or _float(policy, policies, epochs)) for policy in policies]
    return [schedule.source.problem(("policies", policy.index), message) for policy, message in ends if message]


def _cut_off(policy: Policy, epochs: int) -> str:
    """What a gradual pruner comes to in a run that is shorter than its window."""
    last = policy.window.cut_off_by(epochs)
    if last is None or not isinstance(policy.component, Gradual):
        return ""
    reached = policy.component.sparsity_at(policy.window, last)
    asked = policy.component.sparsity_at(policy.window, policy.window.closing)
    if reached == asked:
        return ""
    return (
        f"a run of {epochs} epochs cuts it off: {policy.name!r} comes to sparsity {reached:.4g} and not to {asked:.4g}"
    )


def _float(policy: Policy, policies: Iterable[Policy], epochs: int) -> str:
    """Why what a quantizer works on is not quantized when the run ends."""
    if not isinstance(policy, QuantizationPolicy) or policy.window.missed_by(epochs):
        return ""
    lasting = [p for p in policies if p.kind is QUANTIZER and not p.window.over_before(epochs)]
    taken_over = {name for other in lasting for name in _decided(other)}
    over = policy.window.over_before(epochs)
    if not over or (set(_decided(policy)) <= taken_over if _decided(policy) else lasting):
        return ""
    return f"is over before the run is, and the result will be a float model: {over}"


def missed(policies: Iterable[Policy], skipped: range) -> list[str]:
    """The policies whose window closes within epochs that the loop has passed over."""
    # Before every step: a window in steps is asked about epochs alone, and none of its steps have been passed over.
    moments = [Progress(epoch, step=-1) for epoch in skipped]
    return [str(policy.origin) for policy in policies if any(policy.window.is_last(moment) for moment in moments)]


def without_metrics(policies: Iterable[Policy], now: Progress) -> list[str]:
    """The policies to come that will need metrics when their epochs end."""
    later = [policy for policy in policies if not policy.window.is_open(now) and not policy.window.is_past(now)]
    return [str(policy.origin) for policy in later if policy.takes_metrics]


def collisions(schedule: Schedule, policies: Sequence[Policy]) -> list[Problem]:
    """Two pruners or two quantizers of one parameter, or two LR schedulers, at one time."""
    found = []
    for first, second in combinations(policies, 2):
        if first.kind is not second.kind or not first.kind.exclusive:
            continue
        when = _in_force(first).overlap(_in_force(second))
        shared = [name for name in _decided(first) if name in _decided(second)]
        if when is None or (first.kind.owns_parameters and not shared):
            continue
        what = f"{shared[0]!r} in {when}" if shared else f"in {when}"
        message = f"{first.origin.policy} ({first.name!r}) {first.kind.exclusive} {what} too; two policies may not"
        found.append(schedule.source.problem(("policies", second.index, second.kind.name), message))
    return found


def _decided(policy: Policy) -> list[str]:
    """The names of all that a policy decides about."""
    return [*policy.parameters, *(policy.activations if isinstance(policy, QuantizationPolicy) else ())]


def _in_force(policy: Policy) -> Window:
    """When a policy decides; a quantizer does between its active epochs too."""
    return policy.window.without_gaps() if policy.kind is QUANTIZER else policy.window
