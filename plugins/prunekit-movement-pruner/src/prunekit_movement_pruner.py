"""Movement pruning: weights that training moves towards zero go."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from prunekit.components import Context, Selectors
from prunekit.pruning import GradualSparsity, prune_count


@dataclass(kw_only=True)
class MovementPruner(GradualSparsity):
    """Prunes the weights that move towards zero fastest, to a sparsity that rises along a curve.

    The importance of a weight is S = −Σ_t w_t · ∂L/∂w_t over the mini-batches that were seen: it falls while a step
    against the gradient shrinks |w|, and rises while one makes it grow. Sanh et al. 2020, "Movement pruning: adaptive
    sparsity by fine-tuning", arXiv 2005.07683, section 4, hard movement pruning: M = Top_v(S). The paper's factor α_S,
    the learning rate of the scores, is 1: it does not change their order.

    Args:
        weights: the parameters.
        scope: `tensor` ranks each parameter by itself, `global` all of them together: floor(s · N) of all.
    """

    weights: Selectors
    scope: Literal["tensor", "global"] = "tensor"
    _scores: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def observe(self, parameters: Mapping[str, Parameter], context: Context) -> None:
        """Add what this mini-batch says, in one call for all tensors."""
        scores, weights, gradients = [], [], []
        for name, weight in parameters.items():
            if (gradient := context.gradient(weight)) is not None:
                score = self._scores[name] = self._score(name, weight)
                scores.append(score)
                weights.append(weight.detach().to(score.dtype))
                gradients.append(gradient.to(score.dtype))
        if scores:
            torch._foreach_addcmul_(scores, weights, gradients, value=-1)

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        known = {name: self._scores[name] for name in parameters if name in self._scores}
        for name in parameters.keys() - known if known else ():
            context.warn("no gradient, left as it is", parameter=name)
        sparsity = self.sparsity(context)
        parts = [known] if self.scope == "global" else [{name: score} for name, score in known.items()]
        return {name: mask for part in parts for name, mask in prune_together(part, sparsity).items()}

    def state_dict(self) -> dict[str, Any]:
        """The importance of every weight, by parameter."""
        return {"scores": {name: score.clone() for name, score in self._scores.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the importances of `state_dict()`."""
        self._scores = {name: score.clone() for name, score in state["scores"].items()}

    def _score(self, name: str, weight: Tensor) -> Tensor:
        """What is known of a parameter, where the parameter is."""
        score = self._scores.get(name)
        if score is None:
            return torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32), requires_grad=False)
        return score.to(weight.device)


def prune_together(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """The masks that prune the floor(sparsity * N) lowest of all N scores; none where that is none."""
    count = math.floor(sparsity * sum(score.numel() for score in scores.values()))
    if not count:
        return {}
    keep, masks = prune_count(torch.cat([score.reshape(-1) for score in scores.values()]), count), {}
    for name, score in scores.items():
        masks[name], keep = keep[: score.numel()].reshape(score.shape), keep[score.numel() :]
    return masks
