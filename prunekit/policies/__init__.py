"""Policies: one component and its window, as hook implementations that return effects and change nothing."""

from prunekit.policies.learning_rate import LRPolicy
from prunekit.policies.policy import HookPolicy, Policy
from prunekit.policies.pruning import PrunerArgs, PruningPolicy
from prunekit.policies.quantization import QuantizationPolicy
from prunekit.policies.regularization import RegularizationPolicy, RegularizerArgs, drops_weights

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
