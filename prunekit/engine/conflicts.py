"""What a schedule would do, and when: policies that never act, that collide, or that outlive their scheduler."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from math import gcd, lcm

from prunekit.components.kinds import QUANTIZER
from prunekit.engine.policies import LRPolicy, Policy, QuantizationPolicy
from prunekit.errors import Problem
from prunekit.schedule.schedule import Schedule


def idle_policies(schedule: Schedule, epochs: int | None) -> list[Problem]:
    """Policies whose window opens after a run of this many epochs is over."""
    return [
        schedule.source.problem(
            ("policies", policy.place),
            f"never acts: its first epoch is {policy.window.first}, and a run of {epochs} ends with {epochs - 1}",
        )
        for policy in schedule.policies
        if epochs is not None and policy.window.first >= epochs
    ]


def exhausted(schedule: Schedule, policies: Iterable[Policy], epochs: int | None) -> list[Problem]:
    """LR schedulers whose own plan (`total_steps`) is shorter than a run of this many epochs."""
    found = []
    for policy in policies:
        if isinstance(policy, LRPolicy) and epochs is not None:
            try:
                policy.component.rehearse(min(policy.window.last + 1, epochs))
            except Exception as error:
                path = ("policies", policy.index)
                message = f"{policy.origin.component} does not last for the run: {type(error).__name__}: {error}"
                found.append(schedule.source.problem(path, message))
    return found


def collisions(schedule: Schedule, policies: Sequence[Policy]) -> list[Problem]:
    """Two pruners or two quantizers of one parameter, or two LR schedulers, in one epoch."""
    found = []
    for first, second in combinations(policies, 2):
        if first.kind is not second.kind or not first.kind.exclusive:
            continue
        epoch = first_common(_in_force(first), _in_force(second))
        shared = [name for name in _decided(first) if name in _decided(second)]
        if epoch is None or (first.kind.owns_parameters and not shared):
            continue
        what = f"{shared[0]!r} in epoch {epoch}" if shared else f"in epoch {epoch}"
        message = f"{first.origin.policy} ({first.name!r}) {first.kind.exclusive} {what} too; two policies may not"
        found.append(schedule.source.problem(("policies", second.index, second.kind.name), message))
    return found


def _decided(policy: Policy) -> list[str]:
    """The names of all that a policy decides about."""
    return [*policy.parameters, *(policy.activations if isinstance(policy, QuantizationPolicy) else ())]


def _in_force(policy: Policy) -> Sequence[int]:
    """The epochs in which a policy decides; a quantizer does in those between its active ones too."""
    window = policy.window
    return range(window.first, window.last + 1) if policy.kind is QUANTIZER else window.active


def first_common(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first epoch that two sets of active epochs share, without counting through them.

    >>> first_common(range(0, 10, 2), range(1, 10, 3))
    4
    """
    if not (isinstance(one, range) and isinstance(other, range)):
        listed, rest = (one, other) if not isinstance(one, range) else (other, one)
        return next((epoch for epoch in listed if epoch in rest), None)
    step = gcd(one.step, other.step)
    if (other.start - one.start) % step:
        return None
    turns = (other.start - one.start) // step * pow(one.step // step, -1, other.step // step)
    epoch = one.start + one.step * (turns % (other.step // step))
    both = lcm(one.step, other.step)
    epoch += max(0, -((epoch - max(one.start, other.start)) // both)) * both
    return epoch if epoch in one and epoch in other else None
