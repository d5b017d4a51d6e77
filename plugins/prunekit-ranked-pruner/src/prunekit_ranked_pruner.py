"""Ranked pruning by any ranking that has a name: the groups with the lowest scores go first."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from prunekit.components import Context
from prunekit.pruning import RANKING, FixedSparsity, GradualSparsity, Groups, RankedPruner, RankingName


@dataclass(kw_only=True)
class RankedByName(RankedPruner):
    """Ranks groups as the schedule says.

    Args:
        ranking: which groups go first: `l1` (the smallest mean |w|), `l2` (the smallest L2 norm), or a ranking that is
            installed.
    """

    ranking: RankingName

    def __post_init__(self) -> None:
        RANKING.of(self.ranking)
        super().__post_init__()

    def scores(self, name: str, weight: Tensor, groups: Groups, context: Context) -> Tensor:
        return RANKING.of(self.ranking)(weight, groups)


@dataclass(kw_only=True)
class RankedStructurePruner(FixedSparsity, RankedByName):
    """Prunes the filters, channels or blocks of each tensor that a ranking puts last, at once.

    With `l1` and `l2` as Li et al. 2017, "Pruning filters for efficient ConvNets", arXiv 1608.08710.
    """


@dataclass(kw_only=True)
class RankedStructurePruner_AGP(GradualSparsity, RankedByName):  # noqa: N801  # as in the language's other names
    """Prunes the filters, channels or blocks of each tensor that a ranking puts last, along a sparsity curve.

    As gradually as Zhu & Gupta 2017, arXiv 1710.01878, equation 1.
    """
