"""Policies: one component and its window, as hook implementations that return effects and change nothing."""

from prunekit.components.pruner import PrunerArgs
from prunekit.components.regularizer import RegularizerArgs
from prunekit.engine.policies.learning_rate import LRPolicy
from prunekit.engine.policies.policy import HookPolicy, Policy
from prunekit.engine.policies.pruning import PruningPolicy
from prunekit.engine.policies.quantization import QuantizationPolicy
from prunekit.engine.policies.regularization import RegularizationPolicy, drops_weights

__all__ = [
    "HookPolicy",
    "LRPolicy",
    "Policy",
    "PrunerArgs",
    "PruningPolicy",
    "QuantizationPolicy",
    "RegularizationPolicy",
    "RegularizerArgs",
    "drops_weights",
]
