"""The windows of a schedule's policies while it is carried out: who is live, and whose window opens and closes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch.nn import Module

from prunekit.engine.conflicts import Clash
from prunekit.engine.ledger import Ledger
from prunekit.engine.policies import LRPolicy, Policy, PruningPolicy
from prunekit.engine.quantizers import Quantizers
from prunekit.errors import PrunekitError, ScheduleError
from prunekit.model.known_optimizers import KnownOptimizers
from prunekit.progress import BEFORE_TRAINING, Progress


class Windows:
    """Puts policies on the bus while their windows are open, and tells of it.

    Args:
        policies: of the whole schedule, in its order.
        model: the network.
        ledger: whose bus and masks policies act on.
        quantizers: which follow the windows of their own policies.
        undecided: pairs of policies that may meet, which is an error once they do.

    Attributes:
        within_epochs: whether windows may open and close with a mini-batch.
        any_open: whether any was open, or about to, when policies were last put on the bus.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        model: Module,
        ledger: Ledger,
        quantizers: Quantizers,
        undecided: Sequence[Clash] = (),
    ) -> None:
        self._policies, self._model, self._ledger, self._quantizers = policies, model, ledger, quantizers
        self._undecided = undecided
        self._rated = [policy for policy in policies if isinstance(policy, LRPolicy)]
        # No part of the state: listeners of a resumed run hear of open windows again.
        self._opened: set[int] = set()
        self._in_steps = [policy for policy in policies if policy.window.in_steps]
        # An attribute, not a call: each mini-batch asks, and mostly no window is in steps.
        self.within_epochs = bool(self._in_steps)
        self._last: list[Policy] = []  # whose last step goes on
        self._unchanged_until = 0
        self.any_open = False
        self._prepare(BEFORE_TRAINING)

    def open(self, now: Progress, optimizers: KnownOptimizers) -> None:
        """Put on the bus what is live now, and say whose window opens.

        Raises:
            ScheduleError: two policies act now of which only one may; nothing was changed.
        """
        self._open(now, optimizers, steps_only=False)

    def _open(self, now: Progress, optimizers: KnownOptimizers, *, steps_only: bool) -> None:
        # Of a run that goes on within an epoch, the step that was taken last may have closed a window.
        policies = [policy for policy in self._policies if not _has_closed(policy, "on_minibatch_end", now)]
        self._must_not_meet(policies, now)
        self._last = [policy for policy in self._in_steps if policy.window.is_last(now)]
        steps = [policy.window.unchanged_until(now) for policy in self._in_steps]
        # No step has begun yet where an epoch begins: the first will change what is live.
        self._unchanged_until = min(steps, default=0) if now.minibatch_of_step >= 0 else now.step
        self._set_live(policies, now)
        self.any_open = any(policy.window.is_open(now) or policy.window.prepares(now) for policy in policies)
        acting = [policy for policy in policies if policy.window.is_active(now)]
        self._ledger.masks.activate(n for p in acting if isinstance(p, PruningPolicy) for n in p.parameters)
        self._quantizers.begin(now, steps_only=steps_only)
        self._ledger.rates.watch(any(policy.window.is_open(now) for policy in self._rated))
        self._quantizers.open(now)
        self._prepare(now)
        for policy in policies:
            if policy.window.is_open(now) and policy.index not in self._opened:
                self._opened.add(policy.index)
                self._tell("on_window_open", "window opens", policy, now)
                self._quantizers.tell(policy, optimizers, now)

    def open_within_epoch(self, now: Progress, optimizers: KnownOptimizers) -> None:
        """A mini-batch begins, and with it a step perhaps: `open`, where that changes anything for anybody."""
        if now.minibatch_of_step == 0 and now.step >= self._unchanged_until:
            self._open(now, optimizers, steps_only=True)
        elif now.minibatch_of_step == 0:
            self._quantizers.begin(now, steps_only=True)

    def close(self, hook: str, now: Progress) -> None:
        """Say whose window has closed with an event; a step's policies hear nothing more of its epoch."""
        might = self._last if hook == "on_minibatch_end" else self._policies
        closed = [policy for policy in might if _has_closed(policy, hook, now)]
        if closed and hook == "on_minibatch_end":
            self._set_live([policy for policy in self._policies if policy not in closed], now)
        for policy in closed:
            self._opened.discard(policy.index)
            self._tell("on_window_close", "window closes", policy, now)

    def must_have_metrics(self, metrics: Mapping[str, float] | None, now: Progress) -> None:
        """Whether the metrics of an epoch that ends are all that is looked at; asked before anything happens.

        Raises:
            PrunekitError: one is missing.
        """
        lacking = [lacks for policy in self._rated if policy.window.is_active(now) and (lacks := policy.lacks(metrics))]
        if lacking:
            raise PrunekitError("\n".join(lacking))

    def end_training(self) -> None:
        """Nothing is live any more; what is quantized stays so, for that is the result."""
        self._ledger.bus.set_live(())
        self._opened.clear()
        for policy in self._policies:
            policy.end_training()

    def _set_live(self, policies: Iterable[Policy], now: Progress) -> None:
        # By identity: two policies of one component have its own hooks in common, which run once.
        live = {id(each): each for policy in policies for each in policy.implementations(now)}
        self._ledger.bus.set_live(live.values())

    def _must_not_meet(self, policies: Sequence[Policy], now: Progress) -> None:
        met = [clash for clash in self._undecided if clash.first in policies and clash.second in policies]
        if problems := [clash.problem(now.label) for clash in met if clash.happens(now)]:
            raise ScheduleError(problems)

    def _prepare(self, now: Progress) -> None:
        """Let policies listen to what must be known later."""
        for policy in self._policies:
            policy.prepare(self._model, self._ledger.masks, now)

    def _tell(self, hook: str, event: str, policy: Policy, now: Progress) -> None:
        self._ledger.trace.info(event, hook=hook, **policy.origin._asdict(), **now.trace_keys())
        self._ledger.bus.fire(hook, policy=policy.origin, progress=now)


def _has_closed(policy: Policy, hook: str, now: Progress) -> bool:
    return policy.window.end_hook == hook and policy.window.ends(now)
