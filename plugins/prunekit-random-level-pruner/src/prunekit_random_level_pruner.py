"""Random levels: the smallest groups go, and how many of them is drawn anew at every pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunekit import ArgumentError
from prunekit.components import Context, Sparsity
from prunekit.pruning import Groups, RankedPruner


@dataclass(kw_only=True)
class RandomLevelStructureParameterPruner(RankedPruner):
    """Prunes the groups of each tensor with the smallest mean |w|, to a sparsity that is drawn anew each time.

    s ~ U(low, high) for each parameter at each pruning. Ranking: Li et al. 2017, arXiv 1608.08710, section 3.1; levels
    that change at random are akin to DropFilter, arXiv 1810.09849.

    Args:
        sparsity_range: [low, high], fractions of groups, 0 to 1, between which the sparsity is drawn evenly, for each
            parameter by itself (under `group_dependency` once, for the leader).
        seed: of the sparsities and of the noise; the same on all ranks and after a resume.
    """

    regrows: ClassVar[bool] = True
    sparsity_range: tuple[Sparsity, Sparsity]

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.sparsity_range
        if low > high:
            raise ArgumentError("sparsity_range", message=f"must ascend, got {[low, high]}")

    def frees(self, name: str, context: Context) -> bool:
        """Whether no other sparsity can be drawn than 0."""
        return self.sparsity_range[1] == 0

    def scores(self, name: str, weight: Tensor, groups: Groups, context: Context) -> Tensor:
        return groups.mean_abs(weight)

    def sparsity_of(self, name: str, context: Context) -> float:
        """The sparsity drawn for this parameter and step."""
        low, high = self.sparsity_range
        own = self.generator(context, f"sparsity of {name}")  # not the numbers that the noise is made of
        return low + (high - low) * float(torch.rand((), generator=own))
