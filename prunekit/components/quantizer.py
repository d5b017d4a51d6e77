"""Quantizers: what they must have. What those that speak of modules have besides is in `prunekit.quantization`."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from prunekit.components.context import Context


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
