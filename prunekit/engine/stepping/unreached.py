"""What no optimizer of a run reaches: parameters that none of them steps, and learning rates that nobody moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

from prunekit.engine.policies import LRPolicy, Policy, PruningPolicy, RegularizationPolicy
from prunekit.model.known_optimizers import KnownOptimizers
from prunekit.model.masks import Masks
from prunekit.progress import Progress
from prunekit.trace import Trace


class Unreached:
    """Says once of each policy which of its parameters no optimizer steps, and of each optimizer that its rates stay.

    Args:
        optimizers: that are known.
        masks: whose parameters matter after their policy's window too.
        policies: of the whole schedule.
        trace: where it is said.
    """

    def __init__(self, optimizers: KnownOptimizers, masks: Masks, policies: Sequence[Policy], trace: Trace) -> None:
        self._known, self._masks, self._policies, self._trace = optimizers, masks, policies, trace
        self._said, self._checked = WeakSet[Any](), set[int]()

    def __getstate__(self) -> dict[str, Any]:
        # The optimizers of a copy are others, and weak references can't be copied.
        return {**vars(self), "_said": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _said=WeakSet())

    def tell(self, progress: Progress) -> None:
        """An epoch has ended in which, or before which, an optimizer has stepped."""
        self._tell_unstepped(progress)
        self._tell_not_given(progress)

    def _tell_unstepped(self, progress: Progress) -> None:
        owned: dict[str, None] = {}
        for policy in self._policies:
            prunes = isinstance(policy, PruningPolicy | RegularizationPolicy) and policy.index not in self._checked
            if prunes and (policy.window.is_open(progress) or any(name in self._masks for name in policy.parameters)):
                self._checked.add(policy.index)
                owned |= {name: None for name, p in policy.parameters.items() if p.requires_grad}
        if owned and (unstepped := [name for name in owned if name not in self._known.all_names()]):
            self._trace.warning("no optimizer steps these parameters", **progress.trace_keys(), parameters=unstepped)

    def _tell_not_given(self, progress: Progress) -> None:
        if not any(isinstance(policy, LRPolicy) and policy.window.is_open(progress) for policy in self._policies):
            return
        moved = {id(group) for group in self._known.groups}
        left = [
            optimizer
            for optimizer in self._known.found
            if optimizer not in self._said and any(id(group) not in moved for group in optimizer.param_groups)
        ]
        if left:
            self._said.update(left)
            names = sorted(frozenset().union(*map(self._known.names, left)))
            what = {"optimizers": [type(optimizer).__name__ for optimizer in left], "parameters": names}
            self._trace.warning(
                "learning rates of optimizers that were not given stay", **progress.trace_keys(), **what
            )
