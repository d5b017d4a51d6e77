"""Policies: one component and its window, as hook implementations that return effects and change nothing."""

from collections.abc import Mapping

from prunekit.engine.policies.learning_rate import LRPolicy
from prunekit.engine.policies.policy import HookPolicy, Policy
from prunekit.engine.policies.pruning import PruningPolicy
from prunekit.engine.policies.quantization import QuantizationPolicy
from prunekit.engine.policies.regularization import RegularizationPolicy

POLICIES: Mapping[str, type[Policy]] = {policy.kind.name: policy for policy in Policy.__subclasses__()}
"""The name of each kind of component -> the class of its policies: those that are imported here."""

__all__ = [
    "POLICIES",
    "HookPolicy",
    "LRPolicy",
    "Policy",
    "PruningPolicy",
    "QuantizationPolicy",
    "RegularizationPolicy",
]
