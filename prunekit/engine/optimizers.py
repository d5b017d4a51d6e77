"""The optimizers of a run: hooks around their steps, and the parameters that quantizers want trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from prunekit.engine.policies import LRPolicy, Policy
from prunekit.engine.quantizers import Quantizers


class Optimizers:
    """Optimizers that are known, each hooked once.

    Args:
        before_step: called before each step of any of them.
        after_step: called after it.
        policies: of the whole schedule.
        quantizers: what they train is given to the first optimizer.

    Attributes:
        known: those whose steps are heard of.
    """

    def __init__(
        self,
        before_step: Callable[[], None],
        after_step: Callable[[], None],
        policies: Sequence[Policy],
        quantizers: Quantizers,
    ) -> None:
        self._before_step, self._after_step = before_step, after_step
        self._policies, self._quantizers = policies, quantizers
        self.known: list[Optimizer] = []
        self._hooks: list[RemovableHandle] = []

    def add(self, optimizer: Optimizer) -> None:
        """From now on its steps are heard of."""
        if any(known is optimizer for known in self.known):  # equal is not enough: torch's compare by state
            return
        if not self.known:
            self._train_quantizers(optimizer)
        self.known.append(optimizer)
        self._hook(optimizer)

    def attach(self) -> None:
        """Hear of the steps of all that are known, also if they have been released."""
        self.release()
        for optimizer in self.known:
            self._hook(optimizer)

    def release(self) -> None:
        """Take every hook off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _hook(self, optimizer: Optimizer) -> None:
        hooks = optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)
        self._hooks += hooks

    def _train_quantizers(self, optimizer: Optimizer) -> None:
        """Give an optimizer the parameters that quantizers train, and the LR schedules its new groups."""
        groups = self._quantizers.groups(optimizer)
        for group in groups:
            optimizer.add_param_group(group)
        for policy in self._policies if groups else ():
            if isinstance(policy, LRPolicy):
                policy.component.follow(optimizer)

    def _before(self, *_: Any) -> None:
        self._before_step()

    def _after(self, *_: Any) -> None:
        self._after_step()
