"""SNIP: at initialisation the connections go whose absence would change the loss least."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from prunekit.components import Context, PositiveInt, Selectors, Sparsity
from prunekit.pruning import prune_smallest_together

Tensors = dict[str, Tensor]


@dataclass(kw_only=True)
class SNIPPruner:
    """Prunes, before the first step, the weights of all tensors together that have the lowest connection sensitivity.

    The sensitivity of a weight is s_j = |g_j| / Σ_k |g_k|, where g_j = ∂L/∂c_j at c = 1 is the effect of taking the
    connection away: the weight times its gradient. Exactly floor(s · N) of all N weights go. Lee et al. 2019, "SNIP:
    single-shot network pruning based on connection sensitivity", arXiv 1810.02340, equations 4 to 6 and Algorithm 1.

    Args:
        weights: the parameters, ranked together.
        desired_sparsity: the fraction of zeros in all of them together, 0 to 1.
        batches: how many mini-batches the gradients are averaged over, before the step of the last of which the masks
            are set. The optimizer steps in those before it: the weights in the sensitivity are the first ones all the
            same, and the gradients are taken where they have moved to.
    """

    weights: Selectors
    desired_sparsity: Sparsity
    batches: PositiveInt = 1
    _seen: int = field(default=0, init=False, repr=False)
    _initial: Tensors = field(default_factory=dict, init=False, repr=False)
    _gradients: Tensors = field(default_factory=dict, init=False, repr=False)

    def frees(self, name: str, context: Context) -> bool:
        """Whether nothing is to be pruned."""
        return self.desired_sparsity == 0

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        """None: they are chosen once, when the gradients are known, and stay."""
        return {}

    def observe(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor] | None:
        """The masks, once `batches` mini-batches have been seen, or the window ends."""
        if self._seen >= self.batches or not context.window.is_open(context.progress):
            return None
        self._add(parameters, context)
        last = context.window.is_last_step(context.progress)
        if self._seen < self.batches and not last:
            return None
        if self._seen < self.batches:
            context.warn("the window ends before all batches were seen", batches=self.batches, seen=self._seen)
        sensitivities = {name: (self._initial[name].to(g.device) * g).abs() for name, g in self._gradients.items()}
        self._seen, self._initial, self._gradients = self.batches, {}, {}
        return self._chosen(sensitivities, parameters, context)

    def state_dict(self) -> dict[str, Any]:
        """How many mini-batches have been seen, and until all have been the first weights and the summed gradients."""
        copies = [{name: value.clone() for name, value in kept.items()} for kept in (self._initial, self._gradients)]
        return {"seen": self._seen, "initial": copies[0], "gradients": copies[1]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._seen = state["seen"]
        self._initial = {name: value.clone() for name, value in state["initial"].items()}
        self._gradients = {name: value.clone() for name, value in state["gradients"].items()}

    def _add(self, parameters: Mapping[str, Parameter], context: Context) -> None:
        gradients = {name: context.gradient(weight) for name, weight in parameters.items()}
        known = [gradient for gradient in gradients.values() if gradient is not None]
        # A mini-batch in which all are zero, as gradients are that are not finite, says nothing.
        if known and not any(bool(gradient.any()) for gradient in known):
            return
        self._seen += 1
        for name, weight in parameters.items():
            if (gradient := gradients.get(name)) is not None:
                wide = torch.promote_types(weight.dtype, torch.float32)
                if name not in self._initial:
                    self._initial[name] = weight.detach().to(wide, copy=True)
                    self._gradients[name] = torch.zeros_like(self._initial[name])
                self._gradients[name] = self._gradients[name].to(weight.device) + gradient

    def _chosen(self, sensitivities: Tensors, parameters: Mapping[str, Parameter], context: Context) -> Tensors:
        """The masks of all together."""
        for name in parameters:
            if name not in sensitivities:
                context.warn("no gradient, left out of the ranking", parameter=name)
        count = math.floor(self.desired_sparsity * sum(value.numel() for value in sensitivities.values()))
        if not count:
            return {}
        masks = dict(zip(sensitivities, prune_smallest_together(list(sensitivities.values()), count), strict=True))
        for name, mask in masks.items():
            if mask.numel() and not bool(mask.any()):
                context.warn("no weight is left", parameter=name)
        return masks
