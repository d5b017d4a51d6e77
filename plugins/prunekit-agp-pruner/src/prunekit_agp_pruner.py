"""Automated gradual pruning: sparsity rises along a curve while the network trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import Parameter

from prunekit.components import Context, Selectors
from prunekit.pruning import GradualSparsity, prune_smallest


@dataclass(kw_only=True)
class AutomatedGradualPruner(GradualSparsity):
    """Prunes the smallest weights of each tensor, from `initial_sparsity` to `final_sparsity` over the window.

    Zhu & Gupta 2017, "To prune, or not to prune", arXiv 1710.01878, equation 1.

    Args:
        weights: the parameters, of any shape, each pruned by itself: a name, a glob or a `re:` pattern, or a list of
            them. While the curve asks for less than one element of a tensor, that tensor is left alone.
    """

    weights: Selectors

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        target = self.sparsity(context)
        return {
            name: prune_smallest(weight, count)
            for name, weight in parameters.items()
            if (count := math.floor(target * weight.numel()))
        }
