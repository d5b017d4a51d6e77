"""Policies of pruners: when masks are chosen, and how they are applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.utils.hooks import RemovableHandle

from prunekit.components.context import Context
from prunekit.components.effects import DropMasks, Effect, KeepMasks, SetMasks, SetWeights
from prunekit.components.gradients import Gradients
from prunekit.components.kinds import PRUNER
from prunekit.components.pruner import (
    Freeing,
    Listening,
    Observing,
    Pruner,
    PrunerArguments,
    Reconstructing,
    Regrowing,
    Scaling,
)
from prunekit.engine.checked import Checked, GivenModel
from prunekit.engine.policies.checked_masks import chosen_masks, hands_off, must_own
from prunekit.engine.policies.policy import Policy
from prunekit.engine.problems import Problems, text_of
from prunekit.errors import PrunekitError
from prunekit.model.dataflow import following_batchnorms
from prunekit.model.folding import folded_weight
from prunekit.model.names import stable_name
from prunekit.model.own_hooks import keep_to_module
from prunekit.progress import Progress


@dataclass(eq=False)
class PruningPolicy(Policy):
    """Asks a pruner for masks: when an active epoch begins, and within it where `args` say so.

    With `fold_batchnorm` the pruner sees a convolution's weights times the factors of the batch normalization that
    follows; `batchnorms` says which one, parameter -> module. The mask applies to the weights as they are.

    Attributes:
        gradients: of what it owns, as the component may take them.
        stepping: the parameters of the optimizer that is about to step, where there are several; else None.
    """

    kind = PRUNER
    component: Pruner
    args: PrunerArguments = field(default_factory=PrunerArguments)
    batchnorms: Mapping[str, str] = field(default_factory=dict)
    gradients: Gradients = field(default_factory=Gradients)
    stepping: frozenset[str] | None = None
    _observed: Progress | None = None
    _torn: bool = False
    _started: bool = False
    _gradient_hooks: list[RemovableHandle] = field(default_factory=list)
    _listening: list[RemovableHandle] = field(default_factory=list)
    _scales: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def bind(cls, checked: Checked, network: GivenModel | None, problems: Problems) -> Self:
        policy = super().bind(checked, network, problems)
        policy.args = checked.args
        _must_prune(checked, problems)
        if network is not None and policy.args.fold_batchnorm:
            policy.batchnorms = _batchnorms(checked, network.model, problems)
        return policy

    def hooks(self, progress: Progress) -> Iterable[tuple[str, Callable[..., Any]]]:
        if isinstance(self.component, Observing) and self.window.prepares(progress):
            yield "before_parameter_optimization", self.before_parameter_optimization
        if not self.window.is_active(progress):
            return
        yield self.window.begin_hook, self.begin
        if self.args.mini_batch_pruning_frequency or (self.args.skip_first_minibatch and not self.window.in_steps):
            yield "on_minibatch_begin", self.begin
        if self.args.discard_masks_at_minibatch_end:
            yield "on_minibatch_end", self.end
        at_last = self.args.keep_mask or self.args.mask_gradients or isinstance(self.component, Listening)
        if self.window.is_last(progress) and at_last:
            yield self.window.end_hook, self.end

    def prepare(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> None:
        """Hear what flows through the model before the active epochs and between them."""
        self.gradients.tell()
        if not isinstance(self.component, Listening):
            return
        if not self.window.prepares(progress):
            _remove(self._listening)
        elif not self._listening:
            self._listen(model, masks, progress)

    def rebind(
        self, parameters: Mapping[str, Parameter], model: Module, masks: Mapping[str, Tensor], progress: Progress
    ) -> None:
        super().rebind(parameters, model, masks, progress)
        if self._gradient_hooks:
            _remove(self._gradient_hooks)
            self._mask_gradients(masks)
        if self._listening:
            _remove(self._listening)
            self._listen(model, masks, progress)

    def end_training(self) -> None:
        self.gradients.tell()
        _remove(self._listening)
        _remove(self._gradient_hooks)

    def begin(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> list[Effect] | None:
        """An active epoch or step begins, or a mini-batch in it: new masks, if they are due."""
        due = self._activate(masks) if self.window.begins(progress) else self._is_due(progress)
        return self._prune(model, masks, progress) if due else None

    def before_parameter_optimization(
        self, model: Module, masks: Mapping[str, Tensor], progress: Progress
    ) -> list[Effect] | None:
        assert isinstance(self.component, Observing)
        context = self.context(model, masks, progress)
        if not self._is_stepped_now(context):
            return None
        with torch.no_grad(), hands_off("observe", self.parameters):
            chosen = self.component.observe(self.parameters, context)
        if chosen is None:
            return None
        must_own(chosen, self.parameters, "observe")
        return self._effects(chosen, context)

    def _is_stepped_now(self, context: Context) -> bool:
        """Whether the optimizer that is about to step holds what is observed, whose gradients are new only then."""
        if self.stepping is None:
            return True
        mine, here = self.parameters.keys(), self.stepping & self.parameters.keys()
        if not here or context.progress == self._observed:
            return False
        self._observed = context.progress
        if len(here) < len(mine) and not self._torn:
            self._torn = True
            context.warn("gradients observed before one of several optimizers steps", parameters=sorted(here))
        return True

    def context(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> Context:
        return replace(super().context(model, masks, progress), gradients=self.gradients)

    def end(self, progress: Progress) -> Effect | None:
        """A mini-batch has ended, or the last active epoch: what becomes of the masks."""
        if self.window.ends(progress):
            _remove(self._listening)
            _remove(self._gradient_hooks)
            if self.args.keep_mask:
                return KeepMasks(tuple(self.parameters))
        discards = self.args.discard_masks_at_minibatch_end and progress.minibatch >= 0
        return DropMasks(tuple(self.parameters)) if discards else None

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
            for handle in self.component.listen(self.parameters, self.context(model, masks, progress)):
                self._listening.append(keep_to_module(handle))
        except Exception as error:
            _remove(self._listening)
            error.add_note(f"raised in listen by {self.origin}")
            raise
        if any(hasattr(module, "_orig_mod") or module._compiled_call_impl for module in model.modules()):
            torch.compiler.reset()  # what was compiled before does not see new hooks

    def _activate(self, masks: Mapping[str, Tensor]) -> bool:
        """An active epoch begins; whether masks are chosen now."""
        first, self._started = not self._started, True
        if self.args.mask_gradients and not self._gradient_hooks:
            self._mask_gradients(masks)
        return not (first and self.args.skip_first_minibatch)

    def _is_due(self, progress: Progress) -> bool:
        """Whether the policy's arguments ask for masks before this mini-batch of an active epoch."""
        if self.window.in_steps:
            return False
        every = self.args.mini_batch_pruning_frequency
        # Before the first mini-batch of an epoch masks have just been chosen.
        if every and progress.minibatch > 0 and progress.minibatch_of_run % every == 0:
            return True
        return self.args.skip_first_minibatch and progress.minibatch_of_run == 1

    def _prune(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> list[Effect]:
        context = self.context(model, masks, progress)
        freed = self._freed(context)
        seen = {n: p for n, p in {**self.parameters, **self._folded(model)}.items() if n not in freed}
        chosen = chosen_masks(self.component, seen, context, self.parameters) if seen or not freed else {}
        return self._effects(chosen, context, [name for name in freed if name in masks])

    def _freed(self, context: Context) -> list[str]:
        """The parameters of which nothing at all is to be pruned."""
        if not isinstance(self.component, Freeing):
            return []
        return [name for name in self.parameters if self.component.frees(name, context)]

    def _effects(self, chosen: Mapping[str, Tensor], context: Context, freed: Sequence[str] = ()) -> list[Effect]:
        """What is to be done about masks that the pruner has chosen, and masks that it lets go."""
        left_out = [name for name in self.parameters if name not in chosen and name not in freed]
        if isinstance(self.component, Scaling):
            self._scales = self.component.forward_scales(chosen)
        forward_only, double_copies = self.args.mask_on_forward_only, self.args.use_double_copies
        # Weights that only the forward pass sees masked have been trained all along: nothing of theirs is stale.
        regrows = isinstance(self.component, Regrowing) and self.component.regrows and not forward_only
        resets = {"reset_pruned": self.args.reset_optimizer_state, "reset_regrown": regrows}
        effects: list[Effect] = [SetMasks(chosen, forward_only, double_copies, left_out, self._scales, **resets)]
        if freed:
            effects.append(DropMasks(tuple(freed), freed=True))
        if isinstance(self.component, Reconstructing):
            with torch.no_grad(), hands_off("reconstruct", self.parameters):
                effects.append(SetWeights(self.component.reconstruct(self.parameters, chosen, context)))
        return effects

    def _folded(self, model: Module) -> dict[str, Parameter]:
        """The weights that a batch normalization follows, times its factors; looked up, for it may be replaced."""
        modules = {stable_name(name): module for name, module in model.named_modules()} if self.batchnorms else {}
        if missing := [name for name in self.batchnorms.values() if name not in modules]:
            raise PrunekitError(f"fold_batchnorm: the model has no module {missing[0]!r} any more")
        folded = {n: folded_weight(self.parameters[n].detach(), modules[norm]) for n, norm in self.batchnorms.items()}
        return {name: Parameter(weight, requires_grad=False) for name, weight in folded.items()}

    def _mask_gradients(self, masks: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            if parameter.requires_grad:
                hook = partial(self._masked_gradient, masks, name)
                handle = parameter.register_hook(hook)  # type: ignore[no-untyped-call]
                self._gradient_hooks.append(handle)

    def _masked_gradient(self, masks: Mapping[str, Tensor], name: str, gradient: Tensor) -> Tensor | None:
        mask = masks.get(name)
        # A sparse gradient stays sparse: some optimizers take no other.
        return None if mask is None else gradient * mask * self._scales.get(name, 1)


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()


def _must_prune(checked: Checked, problems: Problems) -> None:
    """Say where a policy's arguments leave it nothing to do."""
    args, window = checked.args, checked.policy.window
    if args.mini_batch_pruning_frequency and window.in_steps:
        message = "is for windows in epochs; one in steps prunes every 'frequency' steps"
        problems.add(checked.place("args", "mini_batch_pruning_frequency"), message, key=True)
        return
    alone = window.acts_once and (window.in_steps or not window.opens_at_start)
    if args.skip_first_minibatch and alone and not args.mini_batch_pruning_frequency:
        message = f"leaves nothing to do: {window.label()} is the only active one, and its beginning is skipped"
        problems.add(checked.place("args", "skip_first_minibatch"), message)


def _batchnorms(checked: Checked, model: Module, problems: Problems) -> dict[str, str]:
    """The name of the batch normalization that follows each owned weight's convolution."""
    place = checked.place("args", "fold_batchnorm")
    try:
        pairs = following_batchnorms(model)
    except Exception as error:
        problems.add(place, f"torch.fx can't trace the model to find what follows its convolutions: {text_of(error)}")
        return {}
    following = {f"{stable_name(conv)}.weight": stable_name(norm) for conv, norm in pairs.items()}
    found = {name: following[name] for name in checked.owned.parameters if name in following}
    if not found:
        problems.add(place, "no batch normalization follows any of the convolutions that this policy prunes")
    return found
