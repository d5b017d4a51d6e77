"""Rankings by name: a score for each group of a weight, from the weight alone; the lowest are pruned first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from torch import Tensor

from prunekit.components.named_kind import ByName, NamedKind, takes
from prunekit.pruning.granularity import Groups

Ranking = Callable[[Tensor, Groups], Tensor]
"""(weight, its groups) -> a score for each group [groups.number]."""


def l1(weight: Tensor, groups: Groups) -> Tensor:
    """The mean magnitude of a group: Σ |w| / n. Li et al. 2017, arXiv 1608.08710, section 3.1, but for the factor."""
    return groups.mean_abs(weight)


def l2(weight: Tensor, groups: Groups) -> Tensor:
    """The L2 norm of a group over the number of its weights: sqrt(Σ w²) / n. Li et al. 2017, arXiv 1608.08710."""
    return groups.l2(weight) / max(groups.size, 1)


RANKINGS: Mapping[str, Ranking] = {"l1": l1, "l2": l2}
"""Every ranking of prunekit by its name in a schedule."""
RANKING = NamedKind("ranking", "rankings", RANKINGS, "a function (weight, groups) -> scores [groups.number]", takes(2))
RankingName = Annotated[Ranking | str, ByName(RANKING)]
"""A ranking, by its name in a schedule: prunekit's own, or one that a distribution offers."""
