"""Automated gradual pruning: sparsity rises along a cubic curve while the network trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import Parameter

from prunekit import ArgumentError, Context, Selectors, Sparsity, prune_smallest


@dataclass
class AutomatedGradualPruner:
    """Prunes the smallest weights of each tensor, from `initial_sparsity` to `final_sparsity` over the window.

    Zhu & Gupta 2017, "To prune, or not to prune", arXiv 1710.01878, equation 1.

    Args:
        initial_sparsity: fraction of zeros at the first active epoch.
        final_sparsity: fraction of zeros at the last active epoch, above the initial one.
        weights: the parameters, of any shape, each pruned by itself. While the curve asks for less than one element
            of a tensor, that tensor is left alone.
    """

    initial_sparsity: Sparsity
    final_sparsity: Sparsity
    weights: Selectors

    def __post_init__(self) -> None:
        if self.final_sparsity <= self.initial_sparsity:
            what = f"must be above initial_sparsity {self.initial_sparsity}, got {self.final_sparsity}"
            raise ArgumentError("final_sparsity", message=what)
        if not self.weights:
            raise ArgumentError("weights", message="selects nothing: name at least one parameter, or '*'")

    @property
    def targets(self) -> Selectors:
        return self.weights

    def sparsity(self, fraction: float) -> float:
        """The target when this fraction of the window, 0 to 1, has passed."""
        initial, final = self.initial_sparsity, self.final_sparsity
        if fraction == 0:
            return initial  # the formula may round to just below: 0.5 + (0.1 - 0.5) is 0.0999…
        return final + (initial - final) * (1 - fraction) ** 3

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        target = self.sparsity(context.window.fraction(context.progress.epoch))
        return {
            name: prune_smallest(weight, count)
            for name, weight in parameters.items()
            if (count := math.floor(target * weight.numel()))
        }
