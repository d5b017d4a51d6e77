"""What of a model can be quantized, and what a quantizer has that chooses among it by module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from prunekit.components.context import Context
from prunekit.errors import ArgumentError


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
    """A quantizer that speaks of modules instead of parameters, and of what activations give."""

    def bits(self, modules: Mapping[str, Quantizable]) -> Mapping[str, ModuleBits]:
        """The bits of every module that gets some; the parameters follow from them, in place of `targets`."""

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


@runtime_checkable
class Calibrated(Protocol):
    """A quantizer that must see activations of the float model before it can quantize them."""

    def calibration(self) -> AbstractContextManager[None]:
        """While it is open, weights and activations are as they are, and what each activation gives is remembered."""
