"""L1 regularization: a penalty on the magnitude of each weight, which drives small weights to zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Parameter

from prunekit.components import Context, NonNegative, OverTime, PerParameter


@dataclass
class L1Regularizer:
    """Adds strength · Σ|w| to the loss, and drops weights of at most `strength` where `threshold_criteria` is given.

    Tibshirani 1996, "Regression shrinkage and selection via the lasso".

    Args:
        reg_regims: the parameters (names, globs, `re:` patterns; `'*'` is every other one, biases included), each with
            its strength.
        threshold_criteria: given, weights with |w| <= strength are set to zero after each mini-batch. A group of one
            weight has one magnitude: `Mean_Abs` and `Max` mean the same here.
    """

    reg_regims: PerParameter[OverTime[NonNegative]]
    threshold_criteria: Literal["Mean_Abs", "Max"] | None = None

    @property
    def thresholds(self) -> bool:
        """Whether weights are dropped."""
        return self.threshold_criteria is not None

    def penalty(self, parameters: Mapping[str, Parameter], context: Context) -> Tensor:
        strengths = [context.now(context.settings[name]) for name in parameters]
        total: Tensor = _WeightedL1.apply(strengths, *parameters.values())  # type: ignore[no-untyped-call]
        return total

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        return {name: weight.abs() > context.now(context.settings[name]) for name, weight in parameters.items()}


class _WeightedL1(Function):
    """Σ strength · Σ|w| over tensors, and its gradient strength · sign(w): 0 where w is 0.

    autograd takes a multi-tensor norm apart again and goes backward tensor by tensor; this stays multi-tensor.
    """

    @staticmethod
    def forward(ctx: Any, strengths: Sequence[float], *weights: Tensor) -> Tensor:
        ctx.strengths = strengths
        ctx.save_for_backward(*weights)
        return torch.stack(torch._foreach_mul(torch._foreach_norm(weights, 1), strengths)).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        signs = torch._foreach_sign(ctx.saved_tensors)
        torch._foreach_mul_(signs, ctx.strengths)
        torch._foreach_mul_(signs, gradient)
        return (None, *signs)
