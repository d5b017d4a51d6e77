"""What a schedule would do, and when: policies that never act, that collide, or that outlive their scheduler."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from prunekit.components.kinds import QUANTIZER
from prunekit.engine.policies import LRPolicy, Policy, QuantizationPolicy
from prunekit.errors import Problem
from prunekit.progress import Window
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
                policy.component.rehearse(policy.time_within(epochs))
            except Exception as error:
                path = ("policies", policy.index)
                message = f"{policy.origin.component} does not last for the run: {type(error).__name__}: {error}"
                found.append(schedule.source.problem(path, message))
    return found


def collisions(schedule: Schedule, policies: Sequence[Policy]) -> list[Problem]:
    """Two pruners or two quantizers of one parameter, or two LR schedulers, at one time."""
    found = []
    for first, second in combinations(policies, 2):
        if first.kind is not second.kind or not first.kind.exclusive:
            continue
        if first.window.unit != second.window.unit:  # only training tells how many steps an epoch has
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
