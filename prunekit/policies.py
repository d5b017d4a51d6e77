"""Policies: one component and its window, as hook implementations that return effects and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from prunekit.bus import Participant, moment
from prunekit.components import (
    Context,
    DropMasks,
    Effect,
    KeepMasks,
    Kind,
    LossTerm,
    Origin,
    Pruner,
    Quantizer,
    Regularizer,
    SetLearningRates,
    SetMasks,
    ZeroWeights,
)
from prunekit.errors import ArgumentError, PluginError
from prunekit.graph import folded_weight
from prunekit.learning_rate import LearningRateSchedule
from prunekit.progress import Progress, Window
from prunekit.quantization import Reading


@dataclass(frozen=True)
class PrunerArgs:
    """The `args` of a pruner's policy."""

    mini_batch_pruning_frequency: Annotated[int, Field(ge=0)] = 0
    mask_on_forward_only: bool = False
    use_double_copies: bool = False
    mask_gradients: bool = False
    keep_mask: bool = False
    discard_masks_at_minibatch_end: bool = False
    skip_first_minibatch: bool = False
    fold_batchnorm: bool = False
    levels: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.mask_gradients and not self.mask_on_forward_only:
            raise ArgumentError(
                "mask_gradients", message="needs mask_on_forward_only: true, or weights are masked anyway"
            )


@dataclass(frozen=True)
class RegularizerArgs:
    """The `args` of a regularizer's policy."""

    keep_mask: bool = False


@dataclass(eq=False)
class Policy:
    """One component and its window.

    Attributes:
        index: its place in the schedule's list.
        kind: of the component.
        name: the component's instance name.
        component: the object made from the schedule's section.
        origin: by whose hand its effects are.
        window: when it acts.
        parameters: what it owns, by name.
        targets: parameter name -> the setting of the selector that chose it.
        selectors: parameter name -> that selector.
        warn: where a component's warnings go.
    """

    index: int
    kind: Kind
    name: str
    component: Any
    origin: Origin
    window: Window
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    targets: Mapping[str, Any] = field(default_factory=dict)
    selectors: Mapping[str, str] = field(default_factory=dict)
    warn: Callable[..., None] = lambda message, **values: None
    _participants: dict[tuple[str, ...], Participant] = field(default_factory=dict)

    def participants(self, epoch: int) -> Iterator[Participant]:
        """What is on the bus in this epoch: the component's own hooks while the window is open, then the policy's."""
        if self.window.is_open(epoch):
            own = self._participants.get(("own",)) or Participant.of(self.component, self.origin)
            self._participants["own",] = own
            if own.hooks:
                yield own
        hooks = dict(self.hooks(epoch)) if self.window.is_active(epoch) else {}
        if hooks:
            key = tuple(hooks)
            yield self._participants.setdefault(key, Participant(self.origin, hooks))

    def hooks(self, epoch: int) -> Iterable[tuple[str, Callable[..., Any]]]:
        """The policy's own implementations for an active epoch."""
        return ()

    def context(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> Context:
        """What its component may know."""
        warn = partial(self.warn, **self.origin._asdict(), **moment(progress))
        return Context(model, masks, progress, self.window, self.targets, self.selectors, warn)

    def state_dict(self) -> dict[str, Any]:
        """What the policy itself must remember across a resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], masks: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict()`."""


@dataclass(eq=False)
class PruningPolicy(Policy):
    """Asks a pruner for masks: when an active epoch begins, and within it where `args` say so.

    With `fold_batchnorm` the pruner sees a convolution's weights times the factors of the batch normalization that
    follows; `batchnorms` holds it by parameter name. The mask applies to the weights as they are.
    """

    component: Pruner
    args: PrunerArgs = field(default_factory=PrunerArgs)
    batchnorms: Mapping[str, Module] = field(default_factory=dict)
    _started: bool = False
    _gradient_hooks: list[RemovableHandle] = field(default_factory=list)

    def hooks(self, epoch: int) -> Iterable[tuple[str, Callable[..., Any]]]:
        yield "on_epoch_begin", self.on_epoch_begin
        if self.args.mini_batch_pruning_frequency or self.args.skip_first_minibatch:
            yield "on_minibatch_begin", self.on_minibatch_begin
        if self.args.discard_masks_at_minibatch_end:
            yield "on_minibatch_end", self.on_minibatch_end
        if epoch == self.window.last and (self.args.keep_mask or self.args.mask_gradients):
            yield "on_epoch_end", self.on_epoch_end

    def on_epoch_begin(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> Effect | None:
        first, self._started = not self._started, True
        if self.args.mask_gradients and not self._gradient_hooks:
            self._mask_gradients(masks)
        return None if first and self.args.skip_first_minibatch else self._prune(model, masks, progress)

    def on_minibatch_begin(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> Effect | None:
        every = self.args.mini_batch_pruning_frequency
        due = every and progress.minibatch > 0 and progress.step % every == 0
        if due or (self.args.skip_first_minibatch and progress.step == 1):
            return self._prune(model, masks, progress)
        return None

    def on_minibatch_end(self) -> Effect:
        return DropMasks(tuple(self.parameters))

    def on_epoch_end(self) -> Effect | None:
        for handle in self._gradient_hooks:
            handle.remove()
        self._gradient_hooks.clear()
        return KeepMasks(tuple(self.parameters)) if self.args.keep_mask else None

    def state_dict(self) -> dict[str, Any]:
        return {"started": self._started, "gradients_masked": bool(self._gradient_hooks)}

    def load_state_dict(self, state: Mapping[str, Any], masks: Mapping[str, Tensor]) -> None:
        self._started = state["started"]
        if state["gradients_masked"] and not self._gradient_hooks:
            self._mask_gradients(masks)

    def _prune(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> SetMasks:
        seen = {name: self._folded(name, parameter) for name, parameter in self.parameters.items()}
        chosen = _chosen_masks(self.component, seen, self.context(model, masks, progress), self.parameters)
        left_out = [name for name in self.parameters if name not in chosen]
        return SetMasks(chosen, self.args.mask_on_forward_only, self.args.use_double_copies, left_out)

    def _folded(self, name: str, parameter: Parameter) -> Parameter:
        batchnorm = self.batchnorms.get(name)
        if batchnorm is None:
            return parameter
        return Parameter(folded_weight(parameter.detach(), batchnorm), requires_grad=False)

    def _mask_gradients(self, masks: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            if parameter.requires_grad:
                hook = partial(_masked_gradient, masks, name)
                handle = parameter.register_hook(hook)  # type: ignore[no-untyped-call]
                self._gradient_hooks.append(handle)


@dataclass(eq=False)
class RegularizationPolicy(Policy):
    """Adds a regularizer's penalty to the loss, and drops weights after the step where it has a threshold."""

    component: Regularizer
    args: RegularizerArgs = field(default_factory=RegularizerArgs)

    def hooks(self, epoch: int) -> Iterable[tuple[str, Callable[..., Any]]]:
        yield "before_backward_pass", self.before_backward_pass
        if drops_weights(self.component):
            yield "on_minibatch_end", self.on_minibatch_end

    def before_backward_pass(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> LossTerm:
        context = self.context(model, masks, progress)
        return LossTerm(self.name, self.component.penalty(self.parameters, context))

    def on_minibatch_end(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> Effect:
        context = self.context(model, masks, progress)
        chosen = _chosen_masks(self.component, self.parameters, context, self.parameters)
        keep = self.args.keep_mask and progress.epoch == self.window.last and progress.is_last_minibatch
        return ZeroWeights(chosen, keep=keep)


@dataclass(eq=False)
class QuantizationPolicy(Policy):
    """Gives the forward pass other values for the weights, from the first active epoch to the last."""

    component: Quantizer
    readings: dict[str, Reading] = field(default_factory=dict)

    def begin(self, model: Module, masks: Mapping[str, Tensor], progress: Progress, blame: Callable[..., None]) -> None:
        """An epoch begins: what the quantizer may know. The readings stay the same objects all through the window."""
        context, failed = self.context(model, masks, progress), partial(blame, hook="quantize", origin=self.origin)
        for name in self.parameters:
            reading = self.readings.setdefault(name, Reading(name, self.component, context, masks, failed))
            reading.context = context


@dataclass(eq=False)
class LRPolicy(Policy):
    """Sets the learning rate of the next epoch when an active one ends, and of epoch 0 before it begins."""

    component: LearningRateSchedule

    def participants(self, epoch: int) -> Iterator[Participant]:
        hooks = dict(self.hooks(epoch)) if self.window.is_active(epoch) else {}
        if hooks:
            yield self._participants.setdefault(tuple(hooks), Participant(self.origin, hooks))

    def hooks(self, epoch: int) -> Iterable[tuple[str, Callable[..., Any]]]:
        if epoch == 0 and not self.component.takes_metrics:
            yield "on_epoch_begin", self.on_epoch_begin
        yield "on_epoch_end", self.on_epoch_end

    def on_epoch_begin(self) -> Effect:
        return SetLearningRates(self.component.at(0))

    def on_epoch_end(self, optimizer: Optimizer, progress: Progress, metrics: Mapping[str, float] | None) -> Effect:
        if self.component.takes_metrics:
            return SetLearningRates(self.component.after(metrics, optimizer))
        return SetLearningRates(self.component.at(progress.epoch + 1))


@dataclass(eq=False)
class HookPolicy(Policy):
    """A component that acts through hooks of its own: an extension."""


def drops_weights(component: object) -> bool:
    """Whether a regularizer drops weights: it has `compute_masks`, and does not say `thresholds = False`."""
    return hasattr(component, "compute_masks") and bool(getattr(component, "thresholds", True))


def _masked_gradient(masks: Mapping[str, Tensor], name: str, gradient: Tensor) -> Tensor | None:
    mask = masks.get(name)
    return None if mask is None else gradient * mask


def _chosen_masks(
    component: Any, seen: Mapping[str, Parameter], context: Context, parameters: Mapping[str, Parameter]
) -> Mapping[str, Tensor]:
    """A component's answer, checked; and whether it has kept its hands off the weights."""
    versions = {name: parameter._version for name, parameter in parameters.items()}
    with torch.no_grad():
        chosen: Mapping[str, Tensor] = component.compute_masks(seen, context)
    for name, parameter in parameters.items():
        if parameter._version != versions[name]:
            raise PluginError(f"compute_masks changed {name!r} in place; it must return masks and leave weights alone")
    _must_own(chosen, parameters)
    return chosen


def _must_own(chosen: object, parameters: Mapping[str, Parameter]) -> None:
    if not isinstance(chosen, Mapping):
        raise PluginError(f"compute_masks must return a mapping of parameter names to masks, got {chosen!r}")
    for name in chosen:
        if name not in parameters:
            raise PluginError(f"compute_masks returned a mask for {name!r}, which is none of the policy's parameters")
