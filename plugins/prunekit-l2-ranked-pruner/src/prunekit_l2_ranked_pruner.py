"""L2 ranking: the groups of weights with the smallest L2 norm go first."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from prunekit.components import Context
from prunekit.pruning import RANKINGS, FixedSparsity, GradualSparsity, Groups, RankedPruner


@dataclass(kw_only=True)
class L2Ranked(RankedPruner):
    """Ranks groups by their L2 norm over their number of elements, which is the same for all groups of a tensor."""

    def scores(self, name: str, weight: Tensor, groups: Groups, context: Context) -> Tensor:
        return RANKINGS["l2"](weight, groups)


@dataclass(kw_only=True)
class L2RankedStructureParameterPruner(FixedSparsity, L2Ranked):
    """Prunes the filters, channels or blocks of each tensor with the smallest L2 norm, at once.

    The score of a group g of n weights is sqrt(Σ w²) / n. Li et al. 2017, "Pruning filters for efficient ConvNets",
    arXiv 1608.08710, whose appendix compares it with L1.
    """


@dataclass(kw_only=True)
class L2RankedStructureParameterPruner_AGP(GradualSparsity, L2Ranked):  # noqa: N801  # the language's name
    """Prunes the filters, channels or blocks of each tensor with the smallest L2 norm, along a sparsity curve.

    Li et al. 2017, arXiv 1608.08710, appendix, as gradually as Zhu & Gupta 2017, arXiv 1710.01878, equation 1.
    """
