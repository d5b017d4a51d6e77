"""Carries out what hook implementations return, and keeps account of what became of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from prunekit.components.effects import (
    DropMasks,
    KeepMasks,
    LossTerm,
    MaskChange,
    ModulesQuantized,
    Origin,
    SetLearningRates,
    SetMasks,
    SetWeights,
    ZeroWeights,
)
from prunekit.engine.bus import EventBus, Result, moment
from prunekit.errors import PluginError
from prunekit.model.masks import Masks
from prunekit.model.optimizer import current_groups, learning_rates, must_fit_groups, set_groups
from prunekit.progress import Progress
from prunekit.trace import Trace


@dataclass(frozen=True)
class _Cause:
    """By whose hand, in which event, and when."""

    origin: Origin
    hook: str
    progress: Progress
    optimizer: Optimizer | None

    @property
    def keys(self) -> dict[str, Any]:
        """What a trace line says of it."""
        return {"hook": self.hook, **self.origin._asdict(), **moment(self.progress)}


class Ledger:
    """The one place where masks, weights and learning rates change; each change leaves a line and reaches listeners.

    `changes` holds, for each parameter, the first and the last change by each origin with their epochs.
    """

    def __init__(self, masks: Masks, bus: EventBus, trace: Trace) -> None:
        self.masks, self.bus, self.trace = masks, bus, trace
        self.changes: dict[str, list[tuple[int, MaskChange]]] = {}
        self._terms: dict[str, Tensor] = {}
        self._minibatches = 0
        self._zeroed: dict[Origin, dict[str, float]] = {}

    def carry_out(self, results: Iterable[Result], hook: str, optimizer: Optimizer | None, progress: Progress) -> None:
        """Do what an event's implementations returned, in their order: all of it, or nothing if a listener fails."""
        wanted = [(result.origin, effect) for result in results for effect in flatten(result.value)]
        for origin, effect in wanted:
            with self._blaming(hook, origin):
                self._must_fit(effect, f"{hook} of {origin}", optimizer)
        vetoed = {
            origin
            for origin, effect in wanted
            if isinstance(effect, SetMasks) and self._vetoed(effect, _Cause(origin, hook, progress, optimizer))
        }
        wanted = [
            (o, effect) for o, effect in wanted if o not in vetoed or not isinstance(effect, SetMasks | SetWeights)
        ]
        undo = self._snapshot([effect for _, effect in wanted], optimizer)
        try:
            for origin, effect in wanted:
                _EFFECTS[type(effect)](self, effect, _Cause(origin, hook, progress, optimizer))
        except Exception:
            undo()
            self.trace.warning("effects undone", hook=hook, **moment(progress))
            raise

    def set_masks(self, effect: SetMasks, cause: _Cause) -> None:
        """A pruner has chosen."""

        def change(name: str) -> tuple[float, float]:
            return self.masks.set(
                name,
                effect.masks[name],
                forward_only=effect.forward_only,
                double_copies=effect.double_copies,
                scale=effect.scales.get(name, 1.0),
            )

        self._change("masks changed", effect.masks, change, cause)
        if effect.left_out:
            self.trace.info("nothing pruned", **cause.keys, parameters=list(effect.left_out))

    def set_weights(self, effect: SetWeights, cause: _Cause) -> None:
        """A pruner makes up for what it took away."""
        for name, values in effect.values.items():
            self.masks.prepare_weights(name, values)()
        if effect.values:
            self.trace.info("weights set", **cause.keys, parameters=list(effect.values))

    def keep_masks(self, effect: KeepMasks, cause: _Cause) -> None:
        """Masks become permanent."""
        self._change("masks kept", [name for name in effect.names if name in self.masks], self.masks.keep, cause)

    def drop_masks(self, effect: DropMasks, cause: _Cause) -> None:
        """Masks are forgotten."""
        dropped = [name for name in effect.names if name in self.masks]
        for name in dropped:
            self.masks.drop(name)
        if dropped:
            self.trace.debug("masks dropped", **cause.keys, parameters=dropped)

    def zero_weights(self, effect: ZeroWeights, cause: _Cause) -> None:
        """A regularizer drops weights: for good, or for once in each mini-batch, which the epoch's line sums up."""
        if effect.keep:
            change = lambda name: self.masks.intersect(name, effect.masks[name])  # noqa: E731
            self._change("masks kept", effect.masks, change, cause)
            return
        before = self._zeroed.setdefault(cause.origin, {})
        for name, mask in effect.masks.items():
            if name not in before:
                before[name] = self.masks.sparsity(name)
            self.masks.prepare_zeros(name, mask)()

    def set_learning_rates(self, effect: SetLearningRates, cause: _Cause) -> None:
        """A schedule has a new value."""
        optimizer = cause.optimizer
        assert optimizer is not None  # else it would have been refused
        before = learning_rates(optimizer)
        set_groups(optimizer, effect.groups)
        after = learning_rates(optimizer)
        if after != before:
            self.trace.info("learning rate changed", **cause.keys, before=before, after=after)
            self.bus.fire("on_learning_rate_changed", before=before, after=after, progress=cause.progress)

    def modules_quantized(self, effect: ModulesQuantized, cause: _Cause) -> None:
        """A quantizer works on modules from now on."""
        self.trace.info("modules quantized", **cause.keys, bits=effect.bits)
        self.bus.fire("on_modules_quantized", bits=effect.bits, progress=cause.progress)

    def add_terms(self, loss: Tensor, results: Iterable[Result]) -> Tensor:
        """The loss plus the terms returned, which are summed for the epoch's line without waiting for the device."""
        self._minibatches += 1
        for result in results:
            for term in flatten(result.value):
                with self._blaming("before_backward_pass", result.origin):
                    if not isinstance(term, LossTerm):
                        raise PluginError(f"before_backward_pass of {result.origin} returned {term!r}, no LossTerm")
                value, total = term.value.detach(), self._terms.get(term.name)
                self._terms[term.name] = value if total is None else total + value
                loss = loss + term.value
        return loss

    def sum_up_epoch(self, progress: Progress) -> None:
        """A line for the mean of each loss term over the epoch's mini-batches, and one for what each policy zeroed."""
        if self._terms:
            means = {name: float(total) / self._minibatches for name, total in self._terms.items()}
            self.trace.info("loss terms", **moment(progress), means=means)
            self.bus.fire("on_loss_terms", means=means, progress=progress)
        for origin, before in self._zeroed.items():
            changes = [MaskChange(name, was, self.masks.sparsity(name), origin) for name, was in before.items()]
            self._announce("weights zeroed", changes, _Cause(origin, "on_minibatch_end", progress, None))
        self._terms, self._minibatches, self._zeroed = {}, 0, {}

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

    @contextmanager
    def _blaming(self, hook: str, origin: Origin) -> Iterator[None]:
        """What an implementation returned is its fault as much as what it raises."""
        try:
            yield
        except PluginError as error:
            self.bus.blame(error, hook, origin)
            raise

    def _must_fit(self, effect: object, who: str, optimizer: Optimizer | None) -> None:
        """Refuse what can't be carried out before anything is."""
        if type(effect) not in _EFFECTS:
            raise PluginError(f"{who} returned {effect!r}; an effect or None was expected")
        try:
            if isinstance(effect, SetMasks | ZeroWeights):
                self.masks.must_be_masks(effect.masks)
            if isinstance(effect, SetWeights):
                self.masks.must_be_values(effect.values)
            if isinstance(effect, SetLearningRates):
                must_fit_groups(effect.groups, optimizer)
        except PluginError as error:
            raise PluginError(f"{who} returned what does not fit: {error}") from None

    def _vetoed(self, effect: SetMasks, cause: _Cause) -> bool:
        """Whether somebody on the bus keeps these masks from being set; whose reason it was stands in the trace."""
        if not effect.masks or not self.bus.hears("veto_pruning"):
            return False
        veto = self.bus.ask(
            "veto_pruning", policy=cause.origin, masks=self.masks, proposed=effect.masks, progress=cause.progress
        )
        if veto is None:
            return False
        with self._blaming("veto_pruning", veto.origin):
            if not isinstance(veto.value, str) or not veto.value:
                raise PluginError(
                    f"veto_pruning of {veto.origin} returned {veto.value!r}; a reason, as text, was expected"
                )
        parameters = list(effect.masks)
        self.trace.info("pruning vetoed", **cause.keys, parameters=parameters, by=str(veto.origin), reason=veto.value)
        return True

    def _snapshot(self, effects: list[Any], optimizer: Optimizer | None) -> Callable[[], None]:
        """How to put everything back if a listener fails over what it hears; what none hears of is not copied."""
        heard = [index for index, effect in enumerate(effects, 1) if self.bus.hears(_heard_in(effect))]
        if not heard:
            return lambda: None
        done = effects[: heard[-1]]  # nothing after it has begun when a listener fails
        touched = {name for effect in done for name in _touched_by(effect)}
        restore_masks = self.masks.snapshot(touched)
        groups = [] if optimizer is None else current_groups(optimizer)
        changes = {name: list(entries) for name, entries in self.changes.items()}
        zeroed = {origin: dict(before) for origin, before in self._zeroed.items()}

        def undo() -> None:
            restore_masks()
            self.changes, self._zeroed = changes, zeroed
            if optimizer is not None:
                set_groups(optimizer, groups)

        return undo

    def _change(
        self, event: str, names: Iterable[str], change: Callable[[str], tuple[float, float]], cause: _Cause
    ) -> None:
        changes = [MaskChange(name, *change(name), cause.origin) for name in names]
        self._announce(event, changes, cause)

    def _announce(self, event: str, changes: list[MaskChange], cause: _Cause) -> None:
        for entry in changes:
            self._remember(entry, cause.progress.epoch)
        if changes:
            sparsity = {c.parameter: [c.sparsity_before, c.sparsity_after] for c in changes}
            self.trace.info(event, **cause.keys, sparsity=sparsity)
            self.bus.fire("on_masks_changed", changes=changes, progress=cause.progress)

    def _remember(self, change: MaskChange, epoch: int) -> None:
        """The first and the last change by each origin are enough to say who pruned a tensor, and when."""
        history = self.changes.setdefault(change.parameter, [])
        if len([1 for _, known in history if known.origin == change.origin]) > 1:
            history.remove(next(entry for entry in reversed(history) if entry[1].origin == change.origin))
        history.append((epoch, change))


def _heard_in(effect: Any) -> str:
    """The hook in which listeners hear of an effect as it is carried out; empty where they do not."""
    if isinstance(effect, SetMasks | KeepMasks) or (isinstance(effect, ZeroWeights) and effect.keep):
        return "on_masks_changed"
    if isinstance(effect, SetLearningRates):
        return "on_learning_rate_changed"
    return "on_modules_quantized" if isinstance(effect, ModulesQuantized) else ""


def _touched_by(effect: Any) -> Iterable[str]:
    """The parameters that an effect changes."""
    return next((getattr(effect, key) for key in ("masks", "values", "names") if hasattr(effect, key)), ())


_EFFECTS: dict[type, Callable[..., None]] = {
    SetMasks: Ledger.set_masks,
    SetWeights: Ledger.set_weights,
    KeepMasks: Ledger.keep_masks,
    DropMasks: Ledger.drop_masks,
    ZeroWeights: Ledger.zero_weights,
    SetLearningRates: Ledger.set_learning_rates,
    ModulesQuantized: Ledger.modules_quantized,
}


def flatten(value: Any) -> Iterator[Any]:
    """One thing, or the things in a list."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from flatten(item)
    elif value is not None:
        yield value
