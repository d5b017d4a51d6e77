"""A network as the rest sees it: parameters by name, the masks on them, selectors, and how data flows."""

from __future__ import annotations

from prunekit.model.dataflow import (
    Activation,
    following_activations,
    following_batchnorms,
    unwrapped,
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

__all__ = [
    "Activation",
    "Parameters",
    "following_activations",
    "following_batchnorms",
    "owners",
    "stable_name",
    "transposed",
    "unwrapped",
    "without_wrappers",
]
