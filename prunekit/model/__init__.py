"""A network as the rest sees it: parameters by name, the masks on them, selectors, layers, and how data flows."""

from __future__ import annotations

from prunekit.model.dataflow import (
    Activation,
    following_activations,
    following_batchnorms,
)
from prunekit.model.layers import (
    BATCH_NORM,
    CONVOLUTION,
    EMBEDDING,
    LINEAR,
    TRANSPOSED_CONVOLUTION,
    Operation,
    operation_of,
)
from prunekit.model.names import (
    stable_name,
    without_wrappers,
)
from prunekit.model.parameters import (
    Parameters,
    owners,
    transposed,
)
from prunekit.model.wrappers import (
    unwrapped,
)

__all__ = [
    "BATCH_NORM",
    "CONVOLUTION",
    "EMBEDDING",
    "LINEAR",
    "TRANSPOSED_CONVOLUTION",
    "Activation",
    "Operation",
    "Parameters",
    "following_activations",
    "following_batchnorms",
    "operation_of",
    "owners",
    "stable_name",
    "transposed",
    "unwrapped",
    "without_wrappers",
]
