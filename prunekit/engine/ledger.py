"""Carries out what hook implementations return, and keeps account of what became of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from prunekit.components.effects import Announcement, Effect, Network, effect_names
from prunekit.components.loss_term import LossComponent, LossTerm, PolicyLoss
from prunekit.components.origin import MaskChange, Origin, Result
from prunekit.engine.bus import EventBus
from prunekit.engine.epoch_sums import EpochSums
from prunekit.engine.rates.owner import Rates
from prunekit.errors import PluginError, shortened
from prunekit.model.known_optimizers import KnownOptimizers
from prunekit.model.masks import Masks
from prunekit.progress import Progress
from prunekit.trace import Trace


@dataclass(frozen=True)
class _Cause:
    """By whose hand, in which event, and when."""

    origin: Origin
    hook: str
    progress: Progress

    @property
    def keys(self) -> dict[str, Any]:
        """What a trace line says of it."""
        return {"hook": self.hook, **self.origin._asdict(), **self.progress.trace_keys()}


@dataclass(frozen=True)
class _Planned:
    """An effect that is to be carried out."""

    effect: Effect
    cause: _Cause


class Ledger:
    """The one place where masks, weights and learning rates change; each change leaves a line and reaches listeners.

    `changes` holds, for each parameter, the first and the last change by each origin with their epochs.
    """

    def __init__(self, masks: Masks, bus: EventBus, trace: Trace) -> None:
        self.masks, self.bus, self.trace = masks, bus, trace
        self.changes: dict[str, list[tuple[int, MaskChange]]] = {}
        self.rates = Rates(trace)
        self._sums = EpochSums()

    def carry_out(self, results: Iterable[Result], hook: str, optimizers: KnownOptimizers, progress: Progress) -> None:
        """Do what an event's implementations returned, in their order: all of it or, if anything fails, nothing."""
        network = Network(self.masks, optimizers)
        planned = self._without_vetoed(self._checked(results, hook, network, progress))
        # All that may fail for want of memory fails here, where nothing has been touched that would have to be undone.
        prepared = [(plan, self._prepared(plan, network)) for plan in planned]
        undo, told = self._remember(planned, network), []
        try:
            for plan, steps in prepared:
                told += self._carry_out(plan, steps)
        except Exception:
            self._after_failure(undo, hook, progress)
            raise
        # Only now: what was undone leaves no account.
        for each in told:
            self._keep_account(each, progress.epoch)
        for plan in planned:
            if plan.effect.sets_rates:
                self.rates.note(plan.cause.origin, optimizers.groups)

    def add_terms(self, loss: Tensor, results: Iterable[Result]) -> PolicyLoss:
        """The loss plus the terms returned, and the terms."""
        self._sums.count_minibatch()
        components = []
        for result in results:
            for term in _things(result.value):
                with self._blaming("before_backward_pass", result.origin):
                    if not isinstance(term, LossTerm):
                        raise PluginError(_unexpected("before_backward_pass", result.origin, term, "a LossTerm"))
                    term.must_fit()
                self._sums.add(term)
                loss = loss + term.value
                components.append(LossComponent(term.name, term.value))
        self._sums.watch(loss)
        return PolicyLoss(loss, components)

    def terms_not_in_loss(self) -> list[str]:
        """Whose terms no mini-batch of this epoch was trained on, though they are live."""
        live = self.bus.live_in("before_backward_pass")
        return [str(origin) for origin in live] if not self._sums.trained_on else []

    def sum_up_epoch(self, progress: Progress) -> None:
        """A line for the mean of each loss term over the epoch's mini-batches, and one for what each policy zeroed."""
        if means := self._sums.means():
            self.trace.info("loss terms", **progress.trace_keys(), means=means)
            self.bus.fire("on_loss_terms", means=means, progress=progress)
        for origin, hook, told in self._sums.told(self.masks):
            self._keep_account(told, progress.epoch)
            self._tell(told, _Cause(origin, hook, progress))
        self._sums = EpochSums()

    def state_dict(self) -> dict[str, Any]:
        """What became of each parameter, as plain data."""
        return {
            name: [(epoch, c.sparsity_before, c.sparsity_after, tuple(c.origin)) for epoch, c in changes]
            for name, changes in self.changes.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.changes = {
            name: [
                (epoch, MaskChange(name, before, after, Origin(*origin))) for epoch, before, after, origin in changes
            ]
            for name, changes in state.items()
        }

    # Before anything is done

    def _checked(
        self, results: Iterable[Result], hook: str, network: Network, progress: Progress
    ) -> Iterator[_Planned]:
        """The effects returned; what can't be carried out is refused."""
        for result in results:
            for effect in _things(result.value):
                with self._blaming(hook, result.origin):
                    self._must_fit(effect, hook, result.origin, network)
                yield _Planned(effect, _Cause(result.origin, hook, progress))

    def _must_fit(self, effect: object, hook: str, origin: Origin, network: Network) -> None:
        if not isinstance(effect, Effect):
            raise PluginError(_unexpected(hook, origin, effect, "an effect", effect_names()))
        try:
            effect.must_fit(network)
        except PluginError as error:
            raise PluginError(f"{hook} of {origin} returned what does not fit: {error}") from None

    def _without_vetoed(self, planned: Iterable[_Planned]) -> list[_Planned]:
        """What is left when everybody on the bus was asked about the masks that are proposed."""
        # All are checked before the first is asked about.
        planned = list(planned)
        vetoed = {plan.cause.origin for plan in planned if plan.effect.proposed and self._is_vetoed(plan)}
        return [plan for plan in planned if not (plan.effect.falls_with_veto and plan.cause.origin in vetoed)]

    def _is_vetoed(self, plan: _Planned) -> bool:
        """Whether somebody keeps masks from being set; whose reason it was stands in the trace."""
        cause, proposed = plan.cause, plan.effect.proposed
        asked = {"policy": cause.origin, "masks": self.masks, "proposed": proposed, "progress": cause.progress}
        veto = self.bus.decide("veto_pruning", **asked)
        if veto is None:
            return False
        with self._blaming("veto_pruning", veto.origin):
            if not isinstance(veto.value, str) or not veto.value:
                raise PluginError(_unexpected("veto_pruning", veto.origin, veto.value, "a reason, as text,"))
        details = {"parameters": list(proposed), "by": str(veto.origin), "reason": veto.value}
        self.trace.info("pruning vetoed", **cause.keys, **details)
        return True

    def _prepared(self, plan: _Planned, network: Network) -> Iterator[Announcement]:
        with self._blaming(plan.cause.hook, plan.cause.origin):
            return plan.effect.prepare(network, plan.cause.origin)

    def _remember(self, planned: list[_Planned], network: Network) -> Callable[[], None] | None:
        """How to put everything back if a listener fails over what it hears; where none hears, nothing is copied."""
        if not any(plan.effect.heard_in and self.bus.hears(plan.effect.heard_in) for plan in planned):
            return None
        touched = {name for plan in planned for name in plan.effect.parameters}
        undo = [self.masks.snapshot(touched), self._sums.remember(), *(p.effect.remember(network) for p in planned)]

        def undo_all() -> None:
            for undo_one in undo:
                undo_one()

        return undo_all

    # What is done

    def _carry_out(self, plan: _Planned, steps: Iterator[Announcement]) -> list[Announcement]:
        """One effect, and each step is told as it is done."""
        cause = plan.cause
        done: list[Announcement] = []
        if plan.effect.is_summed_up:
            self._sums.expect(plan.effect, cause.origin, cause.hook, self.masks)
        while True:
            # Asked for by hand: what the effect raises is its plugin's fault, what a listener raises in `_tell` is not.
            with self._blaming(cause.hook, cause.origin):
                told = next(steps, None)
            if told is None:
                return done
            done.append(told)
            self._tell(told, cause)

    def _tell(self, told: Announcement, cause: _Cause) -> None:
        getattr(self.trace, told.level)(told.event, **cause.keys, **told.values)
        if told.hook:
            self.bus.fire(told.hook, **told.arguments, progress=cause.progress)

    def _after_failure(self, undo: Callable[[], None] | None, hook: str, progress: Progress) -> None:
        """Put everything back; what was not remembered can't be, and that is not kept quiet."""
        if undo is None:
            self.trace.error("effects not undone", hook=hook, **progress.trace_keys())
        else:
            undo()
            self.trace.warning("effects undone", hook=hook, **progress.trace_keys())

    def _keep_account(self, told: Announcement, epoch: int) -> None:
        """The first and the last change by each origin are enough to say who pruned a tensor, and when."""
        for change in told.changes:
            history = self.changes.setdefault(change.parameter, [])
            if len([1 for _, known in history if known.origin == change.origin]) > 1:
                history.remove(next(entry for entry in reversed(history) if entry[1].origin == change.origin))
            history.append((epoch, change))

    @contextmanager
    def _blaming(self, hook: str, origin: Origin) -> Iterator[None]:
        """What becomes of what an implementation returned is its fault as much as what it raises."""
        try:
            yield
        except Exception as error:
            self.bus.blame(error, hook, origin)
            raise


def _unexpected(hook: str, origin: Origin, value: object, expected: str, names: Iterable[str] = ()) -> str:
    known = f": {', '.join(names)}" if names else ""
    return f"{hook} of {origin} returned {shortened(value)}; {expected} or None was expected{known}"


def _things(value: Any) -> Iterator[Any]:
    """One thing, or the things in a list."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _things(item)
    elif value is not None:
        yield value
