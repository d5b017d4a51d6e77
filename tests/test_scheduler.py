"""What a scheduler shows of itself: its policies and the objects made from the schedule's sections."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import MLP, SILENT, pruning

from prunekit import CompressionScheduler


def test_policies_and_components_can_be_looked_at_and_not_changed() -> None:
    scheduler: Any = CompressionScheduler.from_dict(pruning(), MLP(), trace=SILENT)
    (policy,) = scheduler.policies
    assert (policy.name, list(policy.parameters), list(policy.window.active)) == ("p", ["fc1.weight"], [0, 1, 2])
    assert dict(scheduler.components) == {"pruners.p": policy.component}
    with pytest.raises(TypeError, match="does not support item assignment"):
        scheduler.components["pruners.p"] = None
