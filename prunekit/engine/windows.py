"""The windows of a schedule's policies while it is carried out: who is live, and whose window opens and closes."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn import Module
from torch.optim import Optimizer

from prunekit.engine.ledger import Ledger
from prunekit.engine.policies import Policy, PruningPolicy
from prunekit.engine.quantizers import Quantizers
from prunekit.progress import BEFORE_TRAINING, Progress


class Windows:
    """Puts policies on the bus while their windows are open, and tells of it.

    Args:
        policies: of the whole schedule, in its order.
        model: the network.
        ledger: whose bus and masks policies act on.
        quantizers: which follow the windows of their own policies.

    Attributes:
        open_within_epochs, close_within_epochs: whether a window may do so with a mini-batch.
    """

    def __init__(self, policies: Sequence[Policy], model: Module, ledger: Ledger, quantizers: Quantizers) -> None:
        self._policies, self._model, self._ledger, self._quantizers = policies, model, ledger, quantizers
        # No part of the state: listeners of a resumed run hear of open windows again.
        self._opened: set[int] = set()
        # Attributes, not calls: each mini-batch asks, and mostly no window counts in these.
        self.open_within_epochs = any(policy.window.begin_hook == "on_minibatch_begin" for policy in policies)
        self.close_within_epochs = any(policy.window.end_hook == "on_minibatch_end" for policy in policies)
        self._prepare(BEFORE_TRAINING)

    def open(self, now: Progress, optimizer: Optimizer | None) -> None:
        """Put on the bus what is live now, and say whose window opens."""
        # By identity: two policies of one component have its own hooks in common, which run once.
        live = {id(each): each for policy in self._policies for each in policy.implementations(now)}
        self._ledger.bus.set_live(live.values())
        acting = [policy for policy in self._policies if policy.window.is_active(now)]
        self._ledger.masks.activate(n for p in acting if isinstance(p, PruningPolicy) for n in p.parameters)
        self._quantizers.open(now)
        self._prepare(now)
        for policy in self._policies:
            if policy.window.is_open(now) and policy.index not in self._opened:
                self._opened.add(policy.index)
                self._tell("on_window_open", "window opens", policy, now)
                self._quantizers.tell(policy, optimizer, now)

    def close(self, hook: str, now: Progress) -> None:
        """Say whose window has closed with an event."""
        for policy in self._policies:
            if policy.window.end_hook == hook and policy.window.ends(now):
                self._opened.discard(policy.index)
                self._tell("on_window_close", "window closes", policy, now)

    def end_training(self) -> None:
        """Nothing is live any more; what is quantized stays so, for that is the result."""
        self._ledger.bus.set_live(())
        self._opened.clear()
        for policy in self._policies:
            policy.end_training()

    def _prepare(self, now: Progress) -> None:
        """Let policies listen to what must be known later."""
        for policy in self._policies:
            policy.prepare(self._model, self._ledger.masks, now)

    def _tell(self, hook: str, event: str, policy: Policy, now: Progress) -> None:
        self._ledger.trace.info(event, hook=hook, **policy.origin._asdict(), **now.trace_keys())
        self._ledger.bus.fire(hook, policy=policy.origin, progress=now)
