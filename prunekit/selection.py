"""From scores and a sparsity to a mask: pure functions, exact to one unit, ties broken by the lowest index."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NUMPY = {torch.float32, torch.float64}


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


def _on_cpu(scores: Tensor, count: int) -> Tensor:
    values = (scores if scores.dtype in _NUMPY else scores.float()).contiguous().numpy().reshape(-1)
    threshold = _smallest(values, count)
    keep = values > threshold
    surplus = (values.size - count) - np.count_nonzero(keep)
    if surplus:
        ties = np.flatnonzero(values == threshold)
        keep[ties[len(ties) - surplus :]] = True
    return torch.from_numpy(keep).reshape(scores.shape)


def _smallest(values: Any, count: int) -> Any:
    """The `count`-th smallest value."""
    lowest = values.min()
    if np.isnan(lowest):
        raise ValueError("scores hold NaN: nothing can be ranked by them")
    if lowest < 0:
        return np.partition(values, count - 1)[count - 1]
    # Floats that aren't negative sort like their bits, and numpy partitions integers faster.
    bits = values.view(f"i{values.itemsize}")
    zeros = values.size - np.count_nonzero(bits)
    if count <= zeros:
        return values.dtype.type(0)
    keys = _apart(bits) if zeros else bits.copy()
    keys.partition(count - 1)
    return np.maximum(keys[count - 1 : count], 0).view(values.dtype)[0]


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
