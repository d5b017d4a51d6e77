"""Jumps of the learning rate where a window opens, as far as they are known before training."""

from __future__ import annotations

from collections.abc import Sequence

from prunekit.engine.policies import LRPolicy, Policy
from prunekit.engine.rates.schedule import Groups, jump_between
from prunekit.errors import Problem
from prunekit.schedule.schedule import Schedule

_MOST = 100_000
"""Further ahead nothing is looked up: a scheduler has to be walked there, at some microseconds a step."""


def jumps(schedule: Schedule, policies: Sequence[Policy], groups: Groups) -> list[Problem]:
    """A warning for each policy whose first rates are more than three times those before, or less than a third.

    Only where time is counted from the start of the run: else the policy says itself where it begins.
    """
    found, rated = [], [policy for policy in policies if isinstance(policy, LRPolicy)]
    for policy in rated:
        before = _before(policy, rated, groups)
        if before is None or not policy.opens_late or policy.component.takes_metrics or policy.first_time > _MOST:
            continue
        try:
            jump = jump_between(before, policy.values(policy.first_time))
        except Exception:  # its own plan is over by then, which is said elsewhere
            continue
        if jump:
            policy.jump_is_told = True
            path = ("policies", policy.index, policy.kind.name)
            found.append(schedule.source.problem(path, _message(policy, *jump)))
    return found


def _before(policy: LRPolicy, others: Sequence[LRPolicy], groups: Groups) -> Groups | None:
    """What groups hold when a window opens; None where that can't be told."""
    earlier = [other for other in others if other is not policy]
    if any(o.component.takes_metrics or o.window.unit != policy.window.unit or o.last_time > _MOST for o in earlier):
        return None
    opening = policy.window.time(policy.window.opening)
    earlier = [other for other in earlier if other.window.time(other.window.closing) < opening]
    if not earlier:
        return groups
    last = max(earlier, key=lambda other: other.window.time(other.window.closing))
    try:
        return last.values(last.last_time)
    except Exception:
        return None


def _message(policy: LRPolicy, before: float, after: float) -> str:
    counted = "it counts time from the start of the run"
    return (
        f"the learning rate jumps from {before:.4g} to {after:.4g} when the window opens in {policy.window.label()}: "
        f"{counted}; with args: {{relative: true}} it counts from there"
    )
