"""Quantizers: what they must have, what they may have besides, and how they speak of bits and whole numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from prunekit.components.context import Context
from prunekit.errors import ArgumentError


@runtime_checkable
class Quantizer(Protocol):
    """Decides which values the forward pass uses for the weights, while its policy's window is open.

    It quantizes the parameters that its arguments of type `Selectors` or `PerParameter` select.
    The float weights stay: the optimizer updates them under their own names, and gradients reach them through
    `quantize`. A masked weight stays zero.
    """

    def quantize(self, name: str, weight: Tensor, context: Context) -> Tensor:
        """The values that the forward pass uses for `weight`: the same shape and type, differentiable in it.

        Asked whenever the module that owns the parameter reads it. Rounding needs a straight-through estimator (Bengio
        et al. 2013, arXiv 1308.3432): `weight + (rounded - weight).detach()`.
        """


@dataclass(frozen=True)
class Quantizable:
    """What of a module can be quantized; its class, or the function, is its `kind`.

    Attributes:
        kind: its class, or the function.
        weights, bias: it has such parameters.
        activations: it is a ReLU or ReLU6.
        adds: it is a sum of two tensors.
        before_relu: a ReLU or ReLU6 is all that takes what it gives.
    """

    kind: str
    weights: bool = False
    activations: bool = False
    bias: bool = False
    adds: bool = False
    before_relu: bool = False


@dataclass(frozen=True)
class ModuleBits:
    """The bits of one module's parts, None of what is left alone; `given_by` is the key that says so, or no key."""

    weights: int | None = None
    activations: int | None = None
    bias: int | None = None
    given_by: tuple[str, ...] = ()


@runtime_checkable
class QuantizesModules(Protocol):
    """A quantizer that speaks of modules instead of parameters, and of what activations give.

    A class with these methods needs no argument that selects parameters.
    """

    def bits(self, modules: Mapping[str, Quantizable]) -> Mapping[str, ModuleBits]:
        """The bits of every module that gets some; the parameters follow from them: it has no selectors."""

    def check_bits(self, modules: Mapping[str, Quantizable]) -> Iterable[ArgumentError]:
        """What of its arguments fits no module."""

    def quantize(self, name: str, weight: Tensor, context: Context) -> Tensor:
        """As of any quantizer; `context.settings[name]` is the number of bits."""

    def quantize_activation(self, name: str, output: Tensor, context: Context) -> Tensor:
        """What goes on in place of an activation's output: the same shape, differentiable in it.

        `context.activations[name]` is the number of bits.
        """

    def parameter_group(self, activations: Sequence[str], device: torch.device) -> Mapping[str, Any]:
        """A group for the optimizer (`params`, and what else it takes), of parameters such as clipping values.

        Empty where there are none. Added when the optimizer is known, so that a checkpoint of it has always the group.
        """


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


@runtime_checkable
class Calibrated(Protocol):
    """A quantizer that must see activations of the float model before it can quantize them."""

    def calibration(self) -> AbstractContextManager[None]:
        """While it is open, weights and activations are as they are, and what each activation gives is remembered."""
