"""L1 ranking: the groups whose weights are smallest on average go first."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from prunekit.components import Context
from prunekit.pruning import RANKINGS, FixedSparsity, GradualSparsity, Groups, RankedPruner


@dataclass(kw_only=True)
class L1Ranked(RankedPruner):
    """Ranks groups by their mean |w|."""

    def scores(self, name: str, weight: Tensor, groups: Groups, context: Context) -> Tensor:
        return RANKINGS["l1"](weight, groups)


@dataclass(kw_only=True)
class L1RankedStructureParameterPruner(FixedSparsity, L1Ranked):
    """Prunes the filters, channels or blocks of each tensor with the smallest mean |w|, at once.

    The score of a group g of n weights is Σ |w| / n. Li et al. 2017, "Pruning filters for efficient ConvNets",
    arXiv 1608.08710, section 3.1.
    """


@dataclass(kw_only=True)
class L1RankedStructureParameterPruner_AGP(GradualSparsity, L1Ranked):  # noqa: N801  # the language's name
    """Prunes the filters, channels or blocks of each tensor with the smallest mean |w|, along a sparsity curve.

    The score of a group g of n weights is Σ |w| / n. Li et al. 2017, arXiv 1608.08710, section 3.1, as gradually
    as Zhu & Gupta 2017, arXiv 1710.01878, equation 1.
    """
