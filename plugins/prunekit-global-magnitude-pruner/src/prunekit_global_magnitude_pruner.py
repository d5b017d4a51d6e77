"""Global magnitude pruning: one budget for many tensors, and the smallest weights anywhere go."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from prunekit import ArgumentError
from prunekit.components import Context, Selectors, Share
from prunekit.pruning import FixedSparsity, GradualSparsity, prune_smallest_together


@dataclass(kw_only=True)
class GlobalMagnitude:
    """Ranks the weights of all tensors together.

    Args:
        weights: the parameters, of any shape, which share one budget.
        floor: the fraction of each tensor that stays in any case, 0 to below 1. What more would have gone there goes
            from the other tensors, so the budget is the same.
        normalize: what |w| is divided by before it is compared: nothing (`none`), its tensor's L2 norm (`l2`), or its
            tensor's mean |w| (`mean`); `lamp` compares w² over the sum of the squares in its tensor that are not
            smaller.
    """

    weights: Selectors
    floor: Share = 0
    normalize: Literal["none", "l2", "mean", "lamp"] = "none"

    def sparsity(self, context: Context) -> float:
        """The fraction of all weights to prune now: what `FixedSparsity` or `GradualSparsity` adds."""
        raise NotImplementedError(f"{type(self).__name__} must have FixedSparsity or GradualSparsity as a base")

    def check(self, parameters: Mapping[str, Parameter], context: Context) -> Iterator[ArgumentError]:
        """An error where the floor leaves less to prune than is asked for at either end."""
        number = sum(weight.numel() for weight in parameters.values())
        sparsity = max(self.sparsity(context), self.sparsity(context.at_the_end()))
        count, most = math.floor(sparsity * number), sum(map(self._most, parameters.values()))
        if count > most:
            what = f"{self.floor} of each tensor leaves {most} of {number} weights to prune"
            yield ArgumentError("floor", message=f"{what}, and {sparsity} asks for {count}")

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        sparsity = self.sparsity(context)
        count = math.floor(sparsity * sum(weight.numel() for weight in parameters.values()))
        if not count:
            return {}
        most = [self._most(weight) for weight in parameters.values()] if self.floor else None
        scores = [_SCORES[self.normalize](weight.detach()) for weight in parameters.values()]
        masks = dict(zip(parameters, prune_smallest_together(scores, count, most), strict=True))
        for name, mask in masks.items():
            if sparsity < 1 and mask.numel() and not mask.any():
                context.warn("all of a tensor is pruned", parameter=name, shape=list(mask.shape))
        return {name: mask for name, mask in masks.items() if name in context.masks or not mask.all()}

    def _most(self, weight: Tensor) -> int:
        """How many weights of a tensor may go: 0.7 of 10 is exactly 7, as it is written."""
        return weight.numel() - math.ceil(Fraction(str(self.floor)) * weight.numel())


@dataclass(kw_only=True)
class GlobalMagnitudePruner(FixedSparsity, GlobalMagnitude):
    """Prunes the smallest weights of all tensors together: exactly floor(s · N) of N, wherever they are.

    Han et al. 2015, arXiv 1506.02626, prune by magnitude; Frankle & Carbin 2019, arXiv 1803.03635, rank the layers
    of deep networks together; Blalock et al. 2020, arXiv 2003.03033, call it global magnitude pruning.
    """


@dataclass(kw_only=True)
class GlobalMagnitudePruner_AGP(GradualSparsity, GlobalMagnitude):  # noqa: N801  # as in the language's other names
    """Prunes the smallest weights of all tensors together, along a sparsity curve.

    Blalock et al. 2020, arXiv 2003.03033, as gradually as Zhu & Gupta 2017, arXiv 1710.01878, equation 1.
    """


# In 64 bits weights of 32 bits or fewer that differ in their tensor still differ once they are divided.


def _over_l2(weight: Tensor) -> Tensor:
    return _over(weight.double().abs(), torch.linalg.vector_norm(weight, dtype=torch.float64))


def _over_mean(weight: Tensor) -> Tensor:
    return _over(weight.double().abs(), weight.abs().mean(dtype=torch.float64))


def _lamp(weight: Tensor) -> Tensor:
    """w[u]² / Σ w[v]² over all v that come at or after u in order of magnitude. arXiv 2010.07611, equation 1."""
    order = weight.abs().reshape(-1).argsort(stable=True)
    squares = weight.double().square().reshape(-1)[order]
    rest = squares.flip(0).cumsum(0).flip(0)
    return torch.empty_like(squares).scatter_(0, order, _over(squares, rest)).reshape(weight.shape)


def _over(values: Tensor, divisor: Tensor) -> Tensor:
    """0 where the divisor is 0, for so are the values."""
    return values / torch.where(divisor == 0, 1, divisor)


_SCORES = {"none": lambda weight: weight, "l2": _over_l2, "mean": _over_mean, "lamp": _lamp}
