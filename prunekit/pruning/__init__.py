"""What authors of pruners build with: rankings, curves, granularities, exact selection, budgets, random numbers."""

from __future__ import annotations

from prunekit.components.curves import (
    CURVE,
    CURVES,
    Curve,
    CurveName,
)
from prunekit.pruning.budgets import (
    Distribution,
    budgets,
    drop_lowest,
    grow_highest,
    random_mask,
)
from prunekit.pruning.curves import (
    FixedSparsity,
    GradualSparsity,
)
from prunekit.pruning.granularity import (
    GRANULARITIES,
    GRANULARITY,
    Granularity,
    GranularityName,
    Groups,
    Tiles,
    Units,
    check_group_types,
    fitting,
    granularities,
    granularity_of,
    groups_of,
)
from prunekit.pruning.random_numbers import (
    draws,
    generator_at,
)
from prunekit.pruning.rank_sums import (
    RankSums,
    is_distributed,
    widened,
)
from prunekit.pruning.ranked_pruner import (
    RankedPruner,
)
from prunekit.pruning.rankings import (
    RANKING,
    RANKINGS,
    Ranking,
    RankingName,
)
from prunekit.pruning.selection import (
    keep_n_of_m,
    prune_count,
    prune_lowest,
    prune_smallest,
    prune_smallest_together,
)

__all__ = [
    "CURVE",
    "CURVES",
    "GRANULARITIES",
    "GRANULARITY",
    "RANKING",
    "RANKINGS",
    "Curve",
    "CurveName",
    "Distribution",
    "FixedSparsity",
    "GradualSparsity",
    "Granularity",
    "GranularityName",
    "Groups",
    "RankSums",
    "RankedPruner",
    "Ranking",
    "RankingName",
    "Tiles",
    "Units",
    "budgets",
    "check_group_types",
    "draws",
    "drop_lowest",
    "fitting",
    "generator_at",
    "granularities",
    "granularity_of",
    "groups_of",
    "grow_highest",
    "is_distributed",
    "keep_n_of_m",
    "prune_count",
    "prune_lowest",
    "prune_smallest",
    "prune_smallest_together",
    "random_mask",
    "widened",
]
