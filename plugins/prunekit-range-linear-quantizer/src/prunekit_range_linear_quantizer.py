"""Range-linear quantization-aware training: integers that span the range of each tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, distributed

from prunekit import ArgumentError, hookimpl
from prunekit.components import Context, Share
from prunekit.quantization import INPUT, BitsQuantizer, Integers, Levels, ModuleBits, Quantizable

Mode = Literal["SYMMETRIC", "SYMMETRIC_RESTRICTED", "ASYMMETRIC_SIGNED", "ASYMMETRIC_UNSIGNED"]


@dataclass(kw_only=True)
class QuantAwareTrainRangeLinearQuantizer(BitsQuantizer):
    """Rounds weights and activations to integers over their range and back, so that training feels it.

    Jacob et al. 2017, arXiv 1712.05877, section 2 and 3; per channel: Krishnamoorthi 2018, arXiv 1806.08342, section 2.
    With scale s and zero point z a value becomes (round(s · x - z) + z) / s; 0 is always among the values. Gradients go
    straight through within the range. A weight's range is its own; an activation's is the moving average of the ranges
    that training has seen.

    Args:
        mode: `SYMMETRIC` spans -m … m of the largest magnitude m, `SYMMETRIC_RESTRICTED` with one integer less, so that
            there are as many below 0 as above; `ASYMMETRIC_…` spans from the least to the largest value and 0, in
            integers that are `SIGNED` or `UNSIGNED`.
        ema_decay: of the moving average, corrected for its start, 0 to below 1.
        per_channel_wts: a range for each output channel (dimension 0) of a weight in place of one for the tensor.
        quantize_inputs: the model's inputs too.
        num_bits_inputs: of the inputs; those of activations by default.
    """

    mode: Mode = "SYMMETRIC"
    ema_decay: Share = 0.999
    per_channel_wts: bool = False
    quantize_inputs: bool = True
    num_bits_inputs: Annotated[int, Field(ge=2, le=32)] | None = None
    _ranges: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def bits(self, modules: Mapping[str, Quantizable]) -> Mapping[str, ModuleBits]:
        plan = dict(super().bits(modules))
        wanted = self.num_bits_inputs or self.bits_activations
        if self.quantize_inputs and wanted is not None and wanted < 32:
            plan[INPUT] = ModuleBits(activations=wanted)
        return plan

    def check_bits(self, modules: Mapping[str, Quantizable]) -> Iterator[ArgumentError]:
        yield from super().check_bits(modules)
        if self.mode.startswith("SYMMETRIC"):
            parts = ("weights", "activations", "bias")
            yield from self.must_have(2, modules, parts, f"1 bit of {self.mode} has no integer but 0")

    def quantize(self, name: str, weight: Tensor, context: Context) -> Tensor:
        if not weight.numel():
            return weight
        values = weight.detach()
        numbers = weight_numbers(self.mode, context.settings[name], values, self.per_channel_wts)
        return numbers.round_trip(values) + (weight - values)

    def quantize_activation(self, name: str, output: Tensor, context: Context) -> Tensor:
        low, high = self._range(name, output.detach(), context.model.training)
        numbers = linear(self.mode, context.activations[name], low, high)
        clipped = output.clamp(*numbers.span(low, high))
        return numbers.round_trip(clipped.detach()) + (clipped - clipped.detach())

    def integers(self, name: str, weight: Tensor, context: Context) -> Integers | None:
        """Those of a weight's range, or of the ranges of its channels."""
        if not weight.numel():
            return None
        numbers = weight_numbers(self.mode, context.settings[name], weight.detach(), self.per_channel_wts)
        return Integers(numbers.whole(weight.detach()), 1 / numbers.scale, -numbers.zero_point)

    def levels(self, name: str, context: Context) -> Levels | None:
        """Those of the range that training has seen on average."""
        if name not in self._ranges:
            return None
        low, high = self._range(name, self._ranges[name], training=False)
        numbers = linear(self.mode, context.activations[name], low, high)
        least, most = (int(numbers.whole(edge)) for edge in numbers.span(low, high))
        return Levels(1 / float(numbers.scale), -int(numbers.zero_point), least, most)

    @hookimpl
    def on_minibatch_end(self) -> None:
        """Processes that train one model together go on with the mean of what they have seen."""
        if self._ranges and distributed.is_available() and distributed.is_initialized():
            together = torch.stack(list(self._ranges.values())) / distributed.get_world_size()
            distributed.all_reduce(together)
            self._ranges = dict(zip(self._ranges, together.unbind(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The moving averages of each activation."""
        return {"ranges": {name: tensor.clone() for name, tensor in self._ranges.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._ranges = {name: tensor.clone() for name, tensor in state["ranges"].items()}

    def _range(self, name: str, values: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """The least and the largest value, on average; of what has never been trained, those of these values.

        Kept are the two averages, without the correction, and how many values they are of.
        """
        now = torch.stack([values.amin(), values.amax()]).float()
        seen = self._ranges.get(name)
        if seen is None:
            if not training:
                return now[0].to(values.dtype), now[1].to(values.dtype)
            seen = self._ranges[name] = torch.zeros(3, device=values.device)
        elif seen.device != values.device:  # the model has moved, or the state is from elsewhere
            seen = self._ranges[name] = seen.to(values.device)
        decay = seen.new_tensor(self.ema_decay)
        if training:
            seen[:2] = seen[:2] * decay + (1 - decay) * now
            seen[2] += 1
        low, high = (seen[:2] / (1 - decay ** seen[2])).to(values.dtype)
        return low, high


class Linear(NamedTuple):
    """A scale and a zero point."""

    scale: Tensor
    zero_point: Tensor
    symmetric: bool

    def whole(self, values: Tensor) -> Tensor:
        """The nearest whole numbers."""
        return (self.scale * _wide(values) - self.zero_point).round()

    def round_trip(self, values: Tensor) -> Tensor:
        """To whole numbers and back."""
        return ((self.whole(values) + self.zero_point) / self.scale).to(values.dtype)

    def span(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Between which values activations are clipped."""
        largest = torch.maximum(low.abs(), high.abs())
        return (-largest, largest) if self.symmetric else (low, high)


def weight_numbers(mode: Mode, bits: int, weight: Tensor, per_channel: bool) -> Linear:
    """Scale and zero point of a weight, or of each of its channels (dimension 0)."""
    inside = tuple(range(1 if per_channel and weight.dim() > 1 else 0, weight.dim()))
    if not inside:
        return linear(mode, bits, weight, weight)
    return linear(mode, bits, weight.amin(inside, keepdim=True), weight.amax(inside, keepdim=True))


def linear(mode: Mode, bits: int, low: Tensor, high: Tensor) -> Linear:
    """Scale and zero point of a range, which may be one of many: of a range without width the scale is 1."""
    low, high = _wide(low), _wide(high)
    if mode.startswith("SYMMETRIC"):
        steps = 2 ** (bits - 1) - 1 if mode == "SYMMETRIC_RESTRICTED" else (2**bits - 1) / 2
        largest = torch.maximum(low.abs(), high.abs())
        scale = _or_one(steps / largest)
        return Linear(scale, torch.zeros_like(scale), True)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = _or_one((2**bits - 1) / (high - low))
    zero_point = (scale * low).round()
    return Linear(scale, zero_point + (2 ** (bits - 1) if mode == "ASYMMETRIC_SIGNED" else 0), False)


def _or_one(scale: Tensor) -> Tensor:
    """Of a range that has no width, or next to none, 1."""
    return torch.where(scale.isfinite(), scale, 1)


def _wide(values: Tensor) -> Tensor:
    """In 32 bits at least: the integers of 8 bits are too large for half of that, or too fine."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
