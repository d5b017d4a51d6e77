"""Whole numbers behind quantized weights and activations, for who stores them or computes with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from prunekit.components.context import Context


@dataclass(frozen=True)
class Integers:
    """Weights as whole numbers: `(values - zero_point) * scale` is what the forward pass uses in their place.

    Attributes:
        values: whole numbers, in any type, in the weight's shape.
        scale: the distance of two values, in a shape that broadcasts: `[]`, or for one scale a channel `[n, 1, …]`.
        zero_point: the number that stands for 0, shaped like `scale`.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor


@dataclass(frozen=True)
class Levels:
    """What an activation can give: `(n - zero_point) * scale`, the nearest of whole `n` from `least` to `most`."""

    scale: float
    zero_point: int
    least: int
    most: int


@runtime_checkable
class Integral(Protocol):
    """A quantizer whose values are evenly spaced, so that they can be stored and computed with as whole numbers."""

    def integers(self, name: str, weight: Tensor, context: Context) -> Integers | None:
        """The whole numbers behind `quantize(name, weight, context)`; None where there are none."""

    def levels(self, name: str, context: Context) -> Levels | None:
        """What `quantize_activation(name, …, context)` gives; None where that is not known, or not the same for all."""
