"""Regularizers: what they must have, and what a schedule may say of their policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor
from torch.nn import Parameter

from prunekit.components.context import Context


@runtime_checkable
class Regularizer(Protocol):
    """Adds a penalty to the loss, of the parameters that its arguments of type `Selectors` or `PerParameter` select.

    With `compute_masks(parameters, context)` too it drops weights once after each mini-batch (`threshold_criteria`).
    """

    def penalty(self, parameters: Mapping[str, Parameter], context: Context) -> Tensor:
        """The scalar to add to the loss, differentiable in the parameters."""


@dataclass(frozen=True)
class RegularizerArguments:
    """The `args` of a regularizer's policy."""

    keep_mask: bool = False
