"""The third step: policies, each made by the class of its kind from what was checked."""

from __future__ import annotations

from collections.abc import Iterable

from prunekit.engine.checked import Checked, GivenModel
from prunekit.engine.policies import POLICIES, LRPolicy, Policy
from prunekit.engine.problems import Problems


def bind(checked: Iterable[Checked], network: GivenModel | None, problems: Problems) -> list[Policy]:
    """The policies of a schedule, in its order; what a kind of policy alone can find wrong is said."""
    policies = [POLICIES[each.policy.kind].bind(each, network, problems) for each in checked]
    rated = [policy for policy in policies if isinstance(policy, LRPolicy)]
    for policy in rated:
        policy.takes_over = policy.relative and any(policy.window.follows(other.window) for other in rated)
    return policies
