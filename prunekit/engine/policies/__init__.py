"""Policies: one component and its window, as hook implementations that return effects and change nothing."""

from prunekit.components.pruner import PrunerArguments
from prunekit.components.regularizer import RegularizerArguments
from prunekit.engine.policies.learning_rate import LRPolicy
from prunekit.engine.policies.policy import HookPolicy, Policy
from prunekit.engine.policies.pruning import PruningPolicy
from prunekit.engine.policies.quantization import QuantizationPolicy
from prunekit.engine.policies.regularization import RegularizationPolicy, drops_weights

__all__ = [
    "HookPolicy",
    "LRPolicy",
    "Policy",
    "PrunerArguments",
    "PruningPolicy",
    "QuantizationPolicy",
    "RegularizationPolicy",
    "RegularizerArguments",
    "drops_weights",
]
