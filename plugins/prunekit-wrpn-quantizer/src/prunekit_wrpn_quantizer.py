"""WRPN: weights clipped to -1 … 1 and activations to 0 … 1, both at evenly spaced levels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from prunekit import ArgumentError
from prunekit.components import Context
from prunekit.quantization import BitsQuantizer, Integers, Levels, Quantizable


@dataclass(kw_only=True)
class WRPNQuantizer(BitsQuantizer):
    """Quantizes weights and activations as wide reduced-precision networks do; gradients go straight through.

    Mishra et al. 2017, arXiv 1709.01134, section 3: with k bits a weight is round((2^(k-1) - 1) · w) / (2^(k-1) - 1) of
    w clipped to -1 … 1 (one bit is the sign, so k is 2 or more), an activation round((2^k - 1) · a) / (2^k - 1) of a
    clipped to 0 … 1. Widening the layers, the paper's other half, is up to the model.
    """

    def check_bits(self, modules: Mapping[str, Quantizable]) -> Iterator[ArgumentError]:
        yield from super().check_bits(modules)
        yield from self.must_have(2, modules, ("weights", "bias"), "of one bit the sign leaves none")

    def quantize(self, name: str, weight: Tensor, context: Context) -> Tensor:
        return rounded(weight.clamp(-1, 1), 2 ** (context.settings[name] - 1) - 1)

    def quantize_activation(self, name: str, output: Tensor, context: Context) -> Tensor:
        return rounded(output.clamp(0, 1), 2 ** context.activations[name] - 1)

    def integers(self, name: str, weight: Tensor, context: Context) -> Integers:
        """From 1 - 2^(bits - 1) to 2^(bits - 1) - 1."""
        steps = 2 ** (context.settings[name] - 1) - 1
        scale = weight.new_tensor(1 / steps)
        return Integers((weight.detach().clamp(-1, 1) * steps).round(), scale, weight.new_zeros(()))

    def levels(self, name: str, context: Context) -> Levels | None:
        """From 0 to 1."""
        steps = 2 ** context.activations[name] - 1
        return Levels(1 / steps, 0, 0, steps)


def rounded(values: Tensor, steps: int) -> Tensor:
    """The nearest multiples of 1/steps, with the gradient of the values. Bengio et al. 2013, arXiv 1308.3432."""
    return (values.detach() * steps).round_().div_(steps) + (values - values.detach())
