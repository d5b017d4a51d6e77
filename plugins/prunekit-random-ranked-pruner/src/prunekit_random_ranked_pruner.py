"""Random ranking: which filters go is drawn, whatever their weights; a baseline for every other ranking."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunekit.components import Context
from prunekit.pruning import FixedSparsity, GradualSparsity, Groups, RankedPruner


@dataclass(kw_only=True)
class RandomRanked(RankedPruner):
    """Ranks groups by a draw from U(0, 1). Those that are all zero come first, so that a target does not compound.

    Args:
        seed: of the draws, which are made anew at every pruning; the same on all ranks and after a resume.
    """

    noise: float = field(default=0, init=False)  # it is all noise

    def scores(self, name: str, weight: Tensor, groups: Groups, context: Context) -> Tensor:
        draws = torch.rand(groups.number, generator=self.generator(context, name))
        return torch.where(groups.max_abs(weight) == 0, -1, draws.to(weight.device))


@dataclass(kw_only=True)
class RandomRankedFilterPruner(FixedSparsity, RandomRanked):
    """Prunes filters, or other groups, of each tensor at random, at once.

    No paper's method but every paper's baseline: a ranking that does no better has learned nothing from the weights.
    Mittal et al. 2018, "Recovering from random pruning", arXiv 1801.10447.
    """


@dataclass(kw_only=True)
class RandomRankedFilterPruner_AGP(GradualSparsity, RandomRanked):  # noqa: N801  # the language's name
    """Prunes filters, or other groups, of each tensor at random, along a sparsity curve.

    As gradually as Zhu & Gupta 2017, arXiv 1710.01878, equation 1.
    """
