"""Policies: one component and its window, as hook implementations that return effects and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
    Listening,
    LossTerm,
    Observing,
    Origin,
    Pruner,
    Quantizer,
    QuantizesModules,
    Reconstructing,
    Regularizer,
    Scaling,
    SetLearningRates,
    SetMasks,
    SetWeights,
    ZeroWeights,
)
from prunekit.errors import ArgumentError, PluginError
from prunekit.graph import folded_weight
from prunekit.learning_rate import LearningRateSchedule
from prunekit.progress import Progress, Window
from prunekit.quantization import Passing, Reading


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
        if self.keep_mask and self.discard_masks_at_minibatch_end:
            raise ArgumentError("keep_mask", message="discard_masks_at_minibatch_end: true leaves no mask to keep")


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
        hooks = dict(self.hooks(epoch))
        if hooks:
            key = tuple(hooks)
            yield self._participants.setdefault(key, Participant(self.origin, hooks))

    def hooks(self, epoch: int) -> Iterable[tuple[str, Callable[..., Any]]]:
        """The policy's own implementations for an epoch."""
        return ()

    def begin_epoch(self, epoch: int, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> None:
        """Look out for what must be known when a later epoch begins."""

    def end_training(self) -> None:
        """Leave nothing behind in the model."""

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
    _listening: list[RemovableHandle] = field(default_factory=list)
    _scales: Mapping[str, float] = field(default_factory=dict)

    def hooks(self, epoch: int) -> Iterable[tuple[str, Callable[..., Any]]]:
        if isinstance(self.component, Observing) and self._prepares(epoch):
            yield "before_parameter_optimization", self.before_parameter_optimization
        if not self.window.is_active(epoch):
            return
        yield "on_epoch_begin", self.on_epoch_begin
        if self.args.mini_batch_pruning_frequency or self.args.skip_first_minibatch:
            yield "on_minibatch_begin", self.on_minibatch_begin
        if self.args.discard_masks_at_minibatch_end:
            yield "on_minibatch_end", self.on_minibatch_end
        at_last = self.args.keep_mask or self.args.mask_gradients or isinstance(self.component, Listening)
        if epoch == self.window.last and at_last:
            yield "on_epoch_end", self.on_epoch_end

    def begin_epoch(self, epoch: int, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> None:
        """Hear what flows through the model in the epochs before the active ones and between them."""
        if not isinstance(self.component, Listening):
            return
        if not self._prepares(epoch):
            _remove(self._listening)
        elif not self._listening:
            self._listen(model, masks, progress)

    def end_training(self) -> None:
        _remove(self._listening)
        _remove(self._gradient_hooks)

    def on_epoch_begin(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> list[Effect] | None:
        first, self._started = not self._started, True
        if self.args.mask_gradients and not self._gradient_hooks:
            self._mask_gradients(masks)
        return None if first and self.args.skip_first_minibatch else self._prune(model, masks, progress)

    def on_minibatch_begin(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> list[Effect] | None:
        every = self.args.mini_batch_pruning_frequency
        due = every and progress.minibatch > 0 and progress.step % every == 0
        if due or (self.args.skip_first_minibatch and progress.step == 1):
            return self._prune(model, masks, progress)
        return None

    def before_parameter_optimization(
        self, model: Module, masks: Mapping[str, Tensor], progress: Progress
    ) -> list[Effect] | None:
        assert isinstance(self.component, Observing)
        context = self.context(model, masks, progress)
        with torch.no_grad(), _hands_off("observe", self.parameters):
            chosen = self.component.observe(self.parameters, context)
        if chosen is None:
            return None
        _must_own(chosen, self.parameters, "observe")
        return self._effects(chosen, context)

    def on_minibatch_end(self) -> Effect:
        return DropMasks(tuple(self.parameters))

    def on_epoch_end(self) -> Effect | None:
        _remove(self._listening)
        _remove(self._gradient_hooks)
        return KeepMasks(tuple(self.parameters)) if self.args.keep_mask else None

    def state_dict(self) -> dict[str, Any]:
        return {
            "started": self._started,
            "gradients_masked": bool(self._gradient_hooks),
            "scales": dict(self._scales),
        }

    def load_state_dict(self, state: Mapping[str, Any], masks: Mapping[str, Tensor]) -> None:
        self._started, self._scales = state["started"], state["scales"]
        if state["gradients_masked"] and not self._gradient_hooks:
            self._mask_gradients(masks)

    def _listen(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> None:
        assert isinstance(self.component, Listening)
        try:
            self._listening += self.component.listen(self.parameters, self.context(model, masks, progress))
        except Exception as error:
            _remove(self._listening)
            error.add_note(f"raised in listen by {self.origin}")
            raise
        if any(hasattr(module, "_orig_mod") or module._compiled_call_impl for module in model.modules()):
            torch.compiler.reset()  # what was compiled before does not see new hooks

    def _prepares(self, epoch: int) -> bool:
        """Whether what happens in this epoch may count when masks are chosen."""
        return self.window.first - 1 <= epoch <= self.window.last

    def _prune(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> list[Effect]:
        seen = {name: self._folded(name, parameter) for name, parameter in self.parameters.items()}
        context = self.context(model, masks, progress)
        return self._effects(_chosen_masks(self.component, seen, context, self.parameters), context)

    def _effects(self, chosen: Mapping[str, Tensor], context: Context) -> list[Effect]:
        """What is to be done about masks that the pruner has chosen."""
        left_out = [name for name in self.parameters if name not in chosen]
        if isinstance(self.component, Scaling):
            self._scales = self.component.forward_scales(chosen)
        forward_only, double_copies = self.args.mask_on_forward_only, self.args.use_double_copies
        effects: list[Effect] = [SetMasks(chosen, forward_only, double_copies, left_out, self._scales)]
        if isinstance(self.component, Reconstructing):
            with torch.no_grad(), _hands_off("reconstruct", self.parameters):
                effects.append(SetWeights(self.component.reconstruct(self.parameters, chosen, context)))
        return effects

    def _folded(self, name: str, parameter: Parameter) -> Parameter:
        batchnorm = self.batchnorms.get(name)
        if batchnorm is None:
            return parameter
        return Parameter(folded_weight(parameter.detach(), batchnorm), requires_grad=False)

    def _mask_gradients(self, masks: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            if parameter.requires_grad:
                hook = partial(self._masked_gradient, masks, name)
                handle = parameter.register_hook(hook)  # type: ignore[no-untyped-call]
                self._gradient_hooks.append(handle)

    def _masked_gradient(self, masks: Mapping[str, Tensor], name: str, gradient: Tensor) -> Tensor | None:
        mask = masks.get(name)
        return None if mask is None else gradient * mask * self._scales.get(name, 1)


@dataclass(eq=False)
class RegularizationPolicy(Policy):
    """Adds a regularizer's penalty to the loss, and drops weights after the step where it has a threshold."""

    component: Regularizer
    args: RegularizerArgs = field(default_factory=RegularizerArgs)

    def hooks(self, epoch: int) -> Iterable[tuple[str, Callable[..., Any]]]:
        if not self.window.is_active(epoch):
            return
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
    """Gives the forward pass other values for weights and activations, from the first active epoch to the last.

    Attributes:
        activations: the ones it quantizes, with their bits.
        bits: module -> its bits as the trace tells them, and by which line of the schedule.
        untraced: modules whose activation functions can't be found, with the reason.
    """

    component: Quantizer
    activations: Mapping[str, int] = field(default_factory=dict)
    bits: Mapping[str, Mapping[str, int | str | None]] = field(default_factory=dict)
    untraced: Mapping[str, str] = field(default_factory=dict)
    readings: dict[str, Reading] = field(default_factory=dict)
    passings: dict[str, Passing] = field(default_factory=dict)

    def begin(self, model: Module, masks: Mapping[str, Tensor], progress: Progress, blame: Callable[..., None]) -> None:
        """An epoch begins: what the quantizer may know. Readings stay the same objects all through the window."""
        context = self.context(model, masks, progress)
        failed = partial(blame, hook="quantize", origin=self.origin)
        for name in self.parameters:
            reading = self.readings.setdefault(name, Reading(name, self.component, context, masks, failed))
            reading.context = context
        failed = partial(blame, hook="quantize_activation", origin=self.origin)
        for name in self.activations:
            assert isinstance(self.component, QuantizesModules)
            passing = self.passings.setdefault(name, Passing(name, self.component, context, failed))
            passing.context = context

    def context(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> Context:
        return replace(super().context(model, masks, progress), activations=self.activations)

    def parameter_group(self, model: Module, named: bool = False) -> dict[str, Any]:
        """What the optimizer is to train besides the model's own parameters; empty where there is nothing.

        `named`: with a name for each parameter, as an optimizer that knows the names of the others asks for.
        """
        if not self.activations or not isinstance(self.component, QuantizesModules):
            return {}
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        group = dict(self.component.parameter_group(list(self.activations), device))
        if named and group:
            group["params"] = [(f"{self.name}.{index}", p) for index, p in enumerate(group["params"])]
        return group


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


def _chosen_masks(
    component: Any, seen: Mapping[str, Parameter], context: Context, parameters: Mapping[str, Parameter]
) -> Mapping[str, Tensor]:
    """A component's answer, checked."""
    with torch.no_grad(), _hands_off("compute_masks", parameters):
        chosen: Mapping[str, Tensor] = component.compute_masks(seen, context)
    _must_own(chosen, parameters, "compute_masks")
    return chosen


@contextmanager
def _hands_off(method: str, parameters: Mapping[str, Parameter]) -> Iterator[None]:
    """Whether a component's method has left the weights alone."""
    versions = {name: parameter._version for name, parameter in parameters.items()}
    yield
    for name, parameter in parameters.items():
        if parameter._version != versions[name]:
            raise PluginError(f"{method} changed {name!r} in place; it must return masks and leave weights alone")


def _must_own(chosen: object, parameters: Mapping[str, Parameter], method: str) -> None:
    if not isinstance(chosen, Mapping):
        raise PluginError(f"{method} must return a mapping of parameter names to masks, got {chosen!r}")
    for name in chosen:
        if name not in parameters:
            raise PluginError(f"{method} returned a mask for {name!r}, which is none of the policy's parameters")


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()
