"""Whole numbers as files hold them: in the smallest type, exact to the bit when they are read back."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from prunekit.errors import PluginError
from prunekit.quantization.integers import Integers, Levels

_TYPES = (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32)
_BYTE, _NIBBLE = 255, 15


def restored(integers: Integers, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights: `(values - zero_point) * scale`, computed in float32."""
    values, zero_point = integers.values.to(torch.float32), integers.zero_point.to(torch.float32)
    return ((values - zero_point) * integers.scale.to(torch.float32)).to(dtype)


def fitted(integers: Integers, mask: Tensor | None = None) -> Integers:
    """The same weights, the masked ones 0, in the smallest type that holds the numbers and their zero points.

    Where 256 numbers would do and one byte does not hold them, they and their zero point are shifted until it does. A
    channel that is all 0, whose scale says nothing, gets the least of the others: onnxruntime rounds biases by it.
    """
    values, zero_point = integers.values.detach(), _flat_if_one(integers.zero_point).to(integers.values.dtype)
    scale = _flat_if_one(integers.scale).to(torch.float32)
    zero_point = zero_point.expand(scale.shape) if not zero_point.dim() else zero_point
    if mask is not None:
        values = torch.where(mask.to(values.device), values, zero_point)
    least, most = _ends(values, zero_point)
    if _smallest(least, most).itemsize > 1 and int((most - least).max()) <= _BYTE:
        values, zero_point, least, most = values - least, zero_point - least, least - least, most - least
    dtype = _smallest(least, most)
    scale = torch.where(least == most, scale[least != most].min(), scale) if bool((least != most).any()) else scale
    return Integers(values.to(dtype).contiguous(), scale.contiguous(), zero_point.to(dtype).contiguous())


def signed(integers: Integers) -> Integers | None:
    """The same weights in int8; None where a byte does not hold them."""
    if integers.values.dtype == torch.int8:
        return integers
    if integers.values.dtype != torch.uint8:
        return None
    # By way of 16 bits: unsigned bytes would wrap around.
    values, zero_point = (tensor.to(torch.int16) - 128 for tensor in (integers.values, integers.zero_point))
    return replace(integers, values=values.to(torch.int8), zero_point=zero_point.to(torch.int8))


def in_half_a_byte(integers: Integers) -> Integers | None:
    """The same weights in 0 … 15, or in -8 … 7 where the zero point is 0 then; None where 16 numbers are too few."""
    values, zero_point = integers.values.to(torch.int32), integers.zero_point.to(torch.int32)
    least, most = _ends(values, zero_point)
    if not bool(zero_point.any()) and int(least.min()) >= -8 and int(most.max()) <= 7:
        return Integers(values.to(torch.int8), integers.scale, zero_point.to(torch.int8))
    if int((most - least).max()) > _NIBBLE:
        return None
    return Integers((values - least).to(torch.uint8), integers.scale, (zero_point - least).to(torch.uint8))


def must_restore(integers: Integers, weight: Tensor, who: str) -> None:
    """Whether these are the whole numbers behind a weight as the forward pass sees it.

    Raises:
        PluginError: they are of another shape, or some give the value of another number.
    """
    if integers.values.shape != weight.shape:
        got = tuple(integers.values.shape)
        raise PluginError(f"{who}: integers must have the weight's shape {tuple(weight.shape)}, got {got}")
    away = (restored(integers) - weight.to(torch.float32)).abs() / integers.scale
    # Another whole number is a whole step away, rounding far less than a quarter. `not … <`, so that NaN is refused.
    if weight.numel() and not bool(away.max() < 0.25):
        raise PluginError(f"{who}: its integers are not those of its values: {float(away.max()):.3g} steps apart")


def level_type(levels: Levels) -> tuple[Levels, torch.dtype] | None:
    """An activation's levels, shifted to 0 … 255 or as far as 16 bits go, and their type; None if these are too few.

    Not int8: the optimizer of onnxruntime 1.32 spoils max pooling behind it ("output_dtype INT8 does not match").
    """
    numbers = (levels.least, levels.most, levels.zero_point)
    shift = min(numbers)
    if shift >= 0 and max(numbers) <= _BYTE:
        shift = 0
    elif shift >= -128 and max(numbers) <= 127:
        shift = -128
    shifted = Levels(levels.scale, levels.zero_point - shift, levels.least - shift, levels.most - shift)
    types = [t for t in (torch.uint8, torch.uint16) if max(numbers) - shift <= torch.iinfo(t).max]
    return (shifted, types[0]) if types else None


def _ends(values: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest number that share a scale, in the scale's shape, with the zero point among them."""
    if not zero_point.dim():
        both = torch.cat([values.flatten(), zero_point.reshape(1)])
        return both.min(), both.max()
    inside = [dim for dim in range(values.dim()) if zero_point.shape[dim] == 1]
    least, most = (values.amin(inside, keepdim=True), values.amax(inside, keepdim=True)) if inside else (values, values)
    return torch.minimum(least, zero_point), torch.maximum(most, zero_point)


def _smallest(least: Tensor, most: Tensor) -> torch.dtype:
    low, high = int(least.min()), int(most.max())
    return next((t for t in _TYPES if torch.iinfo(t).min <= low and high <= torch.iinfo(t).max), torch.int64)


def _flat_if_one(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(()) if tensor.numel() == 1 else tensor.detach()
