"""DoReFa: weights through tanh to evenly spaced levels, activations clipped to 0 … 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from prunekit.components import Context
from prunekit.quantization import BitsQuantizer, Integers, Levels


@dataclass(kw_only=True)
class DorefaQuantizer(BitsQuantizer):
    """Quantizes weights and activations as DoReFa-Net does; gradients are those of the float model.

    Zhou et al. 2016, arXiv 1606.06160: equations 5 (rounding, straight through), 7 (one bit: sign(w) · E|w|), 9
    (k bits: 2 · Q(tanh(w) / (2 max|tanh(w)|) + ½) - 1), and 10 (activations: Q(clip(a, 0, 1))). Sign is 1 at 0.
    """

    def quantize(self, name: str, weight: Tensor, context: Context) -> Tensor:
        bits = context.settings[name]
        if not weight.numel():
            return weight
        if bits == 1:
            signs = torch.where(weight.detach() < 0, -1.0, 1.0).to(weight.dtype)
            return straight_through(weight, signs * weight.detach().abs().mean())
        values: Tensor = _Weights.apply(weight, 2**bits - 1)  # type: ignore[no-untyped-call]
        return values

    def quantize_activation(self, name: str, output: Tensor, context: Context) -> Tensor:
        clipped, steps = output.clamp(0, 1), 2 ** context.activations[name] - 1
        return straight_through(clipped, (clipped.detach() * steps).round_().div_(steps))

    def integers(self, name: str, weight: Tensor, context: Context) -> Integers:
        """Odd numbers from 1 - 2^bits to 2^bits - 1: zero lies between two of DoReFa's levels."""
        values, bits = self.quantize(name, weight, context).detach(), context.settings[name]
        largest = values.abs().max() if bits == 1 and values.numel() else values.new_ones(())
        scale = largest.clamp(min=torch.finfo(values.dtype).tiny) / (2**bits - 1)
        return Integers((values / scale).round(), scale, torch.zeros_like(scale))

    def levels(self, name: str, context: Context) -> Levels | None:
        """From 0 to 1."""
        steps = 2 ** context.activations[name] - 1
        return Levels(1 / steps, 0, 0, steps)


def straight_through(values: Tensor, quantized: Tensor) -> Tensor:
    """The quantized values exactly, with the gradient of the others. Bengio et al. 2013, arXiv 1308.3432."""
    return quantized + (values - values.detach())


class _Weights(Function):
    """Equation 9. In one piece, since weights are passed over about half as often as operation by operation."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, steps: int) -> Tensor:
        squashed = weight.tanh()
        low, high = squashed.aminmax()
        largest = torch.maximum(-low, high)
        largest = torch.where(largest > 0, largest, 1)
        ctx.save_for_backward(squashed, largest)
        halves = (squashed / (2 * largest)).add_(0.5)
        return halves.mul_(steps).round_().div_(steps).mul_(2).sub_(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Through the division, the largest value, which the largest weights share alike, and tanh."""
        (upstream,), (squashed, largest) = gradients, ctx.saved_tensors
        at_largest = squashed.abs().sub_(largest).sign_().add_(1)  # 1 there, 0 where it is less
        share = (upstream * squashed).sum() / largest / largest / at_largest.sum().clamp(min=1)
        through = (upstream / largest).addcmul_(at_largest.copysign_(squashed), share, value=-1)
        return torch.ops.aten.tanh_backward(through, squashed), None
