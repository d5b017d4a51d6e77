"""What authors of components write: protocols, types of arguments, and what hook implementations return."""

from __future__ import annotations

from prunekit.components.context import (
    Context,
    Stateful,
)
from prunekit.components.curves import (
    OverTime,
    is_change,
)
from prunekit.components.effects import (
    DropMasks,
    Effect,
    KeepMasks,
    ModulesQuantized,
    SetLearningRates,
    SetMasks,
    SetWeights,
    ZeroWeights,
)
from prunekit.components.loss_term import (
    LossTerm,
)
from prunekit.components.origin import (
    Result,
)
from prunekit.components.pruner import (
    Accompanied,
    Freeing,
    Gradual,
    Listening,
    Observing,
    Pruner,
    Reconstructing,
    Regrowing,
    Scaling,
)
from prunekit.components.quantizer import (
    Quantizer,
)
from prunekit.components.regularizer import (
    Regularizer,
)
from prunekit.components.types import (
    NonNegative,
    NonNegativeInt,
    PerParameter,
    Positive,
    PositiveInt,
    Probability,
    Selectors,
    Share,
    Sparsity,
)

__all__ = [
    "Accompanied",
    "Context",
    "DropMasks",
    "Effect",
    "Freeing",
    "Gradual",
    "KeepMasks",
    "Listening",
    "LossTerm",
    "ModulesQuantized",
    "NonNegative",
    "NonNegativeInt",
    "Observing",
    "OverTime",
    "PerParameter",
    "Positive",
    "PositiveInt",
    "Probability",
    "Pruner",
    "Quantizer",
    "Reconstructing",
    "Regrowing",
    "Regularizer",
    "Result",
    "Scaling",
    "Selectors",
    "SetLearningRates",
    "SetMasks",
    "SetWeights",
    "Share",
    "Sparsity",
    "Stateful",
    "ZeroWeights",
    "is_change",
]
