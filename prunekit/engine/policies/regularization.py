"""Policies of regularizers: a penalty in each mini-batch, and weights that are dropped after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor
from torch.nn import Module

from prunekit.components.effects import Effect, ZeroWeights
from prunekit.components.kinds import REGULARIZER
from prunekit.components.loss_term import LossTerm
from prunekit.components.regularizer import Regularizer, RegularizerArguments
from prunekit.engine.checked import Checked, GivenModel
from prunekit.engine.policies.checked_masks import chosen_masks
from prunekit.engine.policies.policy import Policy
from prunekit.engine.problems import Problems
from prunekit.progress import Progress


@dataclass(eq=False)
class RegularizationPolicy(Policy):
    """Adds a regularizer's penalty to the loss, and drops weights after the step where it has a threshold."""

    kind = REGULARIZER
    component: Regularizer
    args: RegularizerArguments = field(default_factory=RegularizerArguments)

    @classmethod
    def bind(cls, checked: Checked, network: GivenModel | None, problems: Problems) -> Self:
        policy = super().bind(checked, network, problems)
        policy.args = checked.args
        if policy.args.keep_mask and not drops_weights(policy.component):
            class_name = checked.made.spec.class_name
            message = f"has no effect: {class_name} drops no weights, so that no mask is made"
            problems.warn(checked.place("args", "keep_mask"), message)
        return policy

    def hooks(self, progress: Progress) -> Iterable[tuple[str, Callable[..., Any]]]:
        if not self.window.is_active(progress):
            return
        yield "before_backward_pass", self.before_backward_pass
        if drops_weights(self.component):
            yield "on_minibatch_end", self.on_minibatch_end

    def before_backward_pass(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> LossTerm:
        context = self.context(model, masks, progress)
        return LossTerm(self.name, self.component.penalty(self.parameters, context))

    def on_minibatch_end(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> Effect:
        context = self.context(model, masks, progress)
        chosen = chosen_masks(self.component, self.parameters, context, self.parameters)
        keep = self.args.keep_mask and self.window.is_last_minibatch(progress)
        return ZeroWeights(chosen, keep=keep)


def drops_weights(component: object) -> bool:
    """Whether a regularizer drops weights: it has `compute_masks`, and does not say `thresholds = False`."""
    return hasattr(component, "compute_masks") and bool(getattr(component, "thresholds", True))
