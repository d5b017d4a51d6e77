"""Level pruning: each tensor loses a given fraction of its weights at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import Parameter

from prunekit.components import Context, OverTime, PerParameter, Sparsity
from prunekit.pruning import prune_smallest


@dataclass
class SparsityLevelParameterPruner:
    """Prunes the floor(s * n) smallest |w| of a tensor with n elements; of equal ones those that come first.

    The simplest of magnitude pruners, and what others (AGP, equation 1 of arXiv 1710.01878) do at each of their steps.

    Args:
        levels: the sparsity s of each parameter (name, glob or `re:` pattern), 0 to 1; `'*'` is every parameter that
            no other key selects, biases included. Tensors of any shape, each ranked by itself. A tensor of which s is
            less than one element is left alone.
    """

    levels: PerParameter[OverTime[Sparsity]]

    def frees(self, name: str, context: Context) -> bool:
        """Whether its level is 0."""
        return bool(context.settings[name] == 0)

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        return {
            name: prune_smallest(weight, count)
            for name, weight in parameters.items()
            if (count := math.floor(context.now(context.settings[name]) * weight.numel()))
        }
