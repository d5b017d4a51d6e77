"""From scores and a sparsity to a mask: pure functions, exact to one unit, ties broken by the lowest index."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunekit.scratch import scratch

_NUMPY = {torch.float32, torch.float64}
_INFINITY = {torch.float32: 0x7F800000, torch.float64: 0x7FF0000000000000}


def prune_lowest(scores: Tensor, sparsity: float) -> Tensor:
    """The mask that prunes exactly floor(sparsity * n) of n scores: the lowest, of equal ones those that come first.

    Args:
        scores: any shape, any floating type.
        sparsity: the fraction to prune, 0 to 1.

    Returns:
        A boolean tensor shaped like `scores`; True keeps.

    Raises:
        ValueError: a score is NaN (seen on the CPU only: elsewhere looking would mean waiting for the device).

    >>> prune_lowest(torch.tensor([3.0, 1.0, 1.0, 2.0]), 0.25)
    tensor([ True, False,  True,  True])
    """
    return prune_count(scores, math.floor(sparsity * scores.numel()))


def prune_count(scores: Tensor, count: int) -> Tensor:
    """Like `prune_lowest`, with the number of scores to prune."""
    if count <= 0 or count >= scores.numel():
        return torch.full_like(scores, count <= 0, dtype=torch.bool)
    if scores.device.type == "cpu":
        return _on_cpu(scores.detach(), count)
    return _on_device(scores.detach(), count)


def prune_smallest(weights: Tensor, count: int) -> Tensor:
    """The mask that prunes exactly `count` weights: the smallest in magnitude, of equal ones those that come first.

    The same as `prune_count(weights.abs(), count)`, in about half the time on a CPU.

    Raises:
        ValueError: a weight is NaN (seen on the CPU only).

    >>> prune_smallest(torch.tensor([3.0, -1.0, 1.0, -2.0]), 1)
    tensor([ True, False,  True,  True])
    """
    weights = weights.detach()
    in_numpy = weights.device.type == "cpu" and weights.dtype in _NUMPY and weights.is_contiguous()
    if not in_numpy or not 0 < count < weights.numel():
        return prune_count(weights.abs(), count)
    bits = weights.numpy().reshape(-1).view(f"i{weights.element_size()}")
    magnitudes = scratch(bits.size, bits.dtype)
    np.bitwise_and(bits, np.iinfo(bits.dtype).max, out=magnitudes)  # without the sign
    threshold = _smallest_bits(magnitudes, count, magnitudes)
    np.bitwise_and(bits, np.iinfo(bits.dtype).max, out=magnitudes)
    if magnitudes.max() > _INFINITY[weights.dtype]:
        raise ValueError("weights hold NaN: nothing can be ranked by them")
    return _keep(magnitudes, threshold, count).reshape(weights.shape)


def _on_cpu(scores: Tensor, count: int) -> Tensor:
    values = (scores if scores.dtype in _NUMPY else scores.float()).contiguous().numpy().reshape(-1)
    return _keep(values, _smallest(values, count), count).reshape(scores.shape)


def _keep(values: Any, threshold: Any, count: int) -> Tensor:
    """True above the threshold, and at it for as many as must stay, from the last on."""
    keep = values > threshold
    surplus = (values.size - count) - np.count_nonzero(keep)
    if surplus:
        ties = np.flatnonzero(values == threshold)
        keep[ties[len(ties) - surplus :]] = True
    return torch.from_numpy(keep)


def _smallest(values: Any, count: int) -> Any:
    """The `count`-th smallest value."""
    lowest = values.min()
    if np.isnan(lowest):
        raise ValueError("scores hold NaN: nothing can be ranked by them")
    if lowest < 0:
        return np.partition(values, count - 1)[count - 1]
    # Floats that aren't negative sort like their bits, and numpy partitions integers faster.
    bits = values.view(f"i{values.itemsize}")
    return np.array([_smallest_bits(bits, count, None)], bits.dtype).view(values.dtype)[0]


def _smallest_bits(bits: Any, count: int, spare: Any | None) -> Any:
    """The `count`-th smallest of integers of which none is negative but -0.0; `spare` may be overwritten."""
    zeros = bits.size - np.count_nonzero(bits)
    if count <= zeros:
        return bits.dtype.type(0)
    keys = _apart(bits) if zeros else bits.copy() if spare is None else spare
    keys.partition(count - 1)
    return max(keys[count - 1], bits.dtype.type(0))


def _apart(bits: Any) -> Any:
    """The same numbers, each zero replaced by a negative one of its own: partition is 50 times slower on many ties."""
    keys = bits - 1
    keys >>= 8 * bits.itemsize - 1
    keys &= np.arange(-bits.size, 0, dtype=bits.dtype)
    keys |= bits
    return keys


def _on_device(scores: Tensor, count: int) -> Tensor:
    # No value leaves the device, so the host never waits for it.
    values = scores.reshape(-1)
    threshold = values.kthvalue(count).values
    keep = values > threshold
    ties = values == threshold
    surplus = (values.numel() - count) - keep.sum()
    keep |= ties & (ties.cumsum(0) > ties.sum() - surplus)
    return keep.reshape(scores.shape)
