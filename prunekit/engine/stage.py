"""How far compression has come, so that models are compared with their like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import Module

from prunekit.engine.policies import Policy, PruningPolicy, QuantizationPolicy, RegularizationPolicy
from prunekit.progress import Progress
from prunekit.pruning.curves import FixedSparsity, GradualSparsity

Stage = Literal["dense", "partial", "final"]
STAGES: tuple[Stage, ...] = ("dense", "partial", "final")
"""In the order in which a run goes through them."""


def stage_of(
    policies: Sequence[Policy], model: Module, masks: Mapping[str, Tensor], progress: Progress, next_epoch: int
) -> Stage:
    """What these policies have made of a model up to now; `next_epoch` is the first that is not complete."""
    now = _Now(model, masks, progress, progress.next_epoch == next_epoch)
    compressing = [policy for policy in policies if _compresses(policy)]
    compressed = any(map(now.quantizes, compressing)) or any(not bool(mask.all()) for mask in masks.values())
    if all(map(now.is_done, compressing)):
        return "final" if compressing or compressed else "dense"
    return "partial" if compressed else "dense"


def _compresses(policy: Policy) -> bool:
    """Whether it leaves masks, or a quantized model."""
    keeps_mask = isinstance(policy, RegularizationPolicy) and policy.args.keep_mask
    return keeps_mask or isinstance(policy, PruningPolicy | QuantizationPolicy)


@dataclass(frozen=True)
class _Now:
    """A moment of training, to ask of each policy what it has done by then."""

    model: Module
    masks: Mapping[str, Tensor]
    progress: Progress
    epoch_is_over: bool

    def is_done(self, policy: Policy) -> bool:
        """Whether its window has ended, or it already does what it does at the end."""
        window = policy.window
        time = window.time_after(self.progress) if self.epoch_is_over else window.time(self.progress)
        return time > window.time(window.closing) or self.quantizes(policy) or self._is_at_target(policy)

    def quantizes(self, policy: Policy) -> bool:
        """Whether the forward pass reads what it has made: bits stay the same while a window is open."""
        if not isinstance(policy, QuantizationPolicy):
            return False
        begun = policy.quantized_weights or policy.quantized_activations
        return bool(begun) and policy.window.is_open(self.progress)

    def _is_at_target(self, policy: Policy) -> bool:
        """Whether it has chosen masks, and already of the sparsity that it ends with."""
        component, window = policy.component, policy.window
        begun = window.time(self.progress) >= window.time(window.opening)
        if not isinstance(component, FixedSparsity | GradualSparsity) or not begun:
            return False
        context = policy.context(self.model, self.masks, self.progress)
        chosen = any(name in self.masks for name in policy.parameters)
        return chosen and component.sparsity(context) == component.sparsity(context.at_the_end())
