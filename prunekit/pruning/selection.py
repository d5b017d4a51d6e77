"""From scores and a sparsity to a mask: pure functions, exact to one unit, ties broken by the lowest index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunekit.model.scratch import scratch

_NUMPY = {torch.float32, torch.float64}
# The bits of infinity. Without their sign bit, all floats with larger bits are NaN.
_INFINITY = {
    torch.float16: 0x7C00,
    torch.bfloat16: 0x7F80,
    torch.float32: 0x7F800000,
    torch.float64: 0x7FF0000000000000,
}
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Comparing looks at each weight m - 1 times: longer groups are sorted.
_MOST_COMPARED = 16
_CHUNK = 2**15


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
    magnitudes = scratch(weights.numel(), f"i{weights.element_size()}")
    threshold = _smallest_bits(_magnitudes(weights, magnitudes), count, magnitudes)
    # Made anew, because the partition may have left them in another order.
    if _magnitudes(weights, magnitudes).max() > _INFINITY[weights.dtype]:
        raise ValueError("weights hold NaN: nothing can be ranked by them")
    return _keep(magnitudes, threshold, count).reshape(weights.shape)


def prune_smallest_together(weights: Sequence[Tensor], count: int, most: Sequence[int] | None = None) -> list[Tensor]:
    """The masks that prune exactly `count` of the weights of all tensors together: the smallest in magnitude anywhere.

    Of equal ones those that come first go: tensor by tensor, and within each by index. Types may differ.

    Args:
        weights: any shapes, any floating types.
        count: how many go.
        most: how many may go of each tensor; what more would have gone there goes elsewhere.

    Raises:
        ValueError: `most` does not allow `count`, or a weight is NaN (seen on the CPU only).

    >>> prune_smallest_together([torch.tensor([3.0, -1.0]), torch.tensor([1.0, 0.5])], 2)
    [tensor([ True, False]), tensor([ True, False])]
    >>> prune_smallest_together([torch.tensor([3.0, -1.0]), torch.tensor([0.2, 0.1])], 2, most=[2, 1])
    [tensor([ True, False]), tensor([ True, False])]
    """
    weights = [weight.detach() for weight in weights]
    if most is None:
        return _smallest_of_all(weights, count)
    if count > sum(most):
        raise ValueError(f"{count} of {sum(weight.numel() for weight in weights)} can't go: at most {sum(most)} may")
    full: dict[int, Tensor] = {}
    while True:
        free = [index for index in range(len(weights)) if index not in full]
        rest = count - sum(most[index] for index in full)
        masks = dict(zip(free, _smallest_of_all([weights[index] for index in free], rest), strict=True))
        over = [index for index, mask in masks.items() if mask.numel() - int(mask.sum()) > most[index]]
        if not over:
            return [full[index] if index in full else masks[index] for index in range(len(weights))]
        full |= {index: prune_smallest(weights[index], most[index]) for index in over}  # the rest only asks for more


def keep_n_of_m(weights: Tensor, n: int, m: int, dim: int) -> Tensor:
    """The mask that keeps, of each `m` consecutive weights along a dimension, the `n` largest in magnitude.

    Of equal ones those that come last stay. Exactly `n` of each `m`, whatever the weights.

    Args:
        weights: any floating type.
        n: how many stay, 0 to `m`.
        m: how many make a group.
        dim: the dimension, whose size `m` divides.

    Raises:
        ValueError: `m` does not divide the dimension, or a weight is NaN (seen on the CPU only).

    >>> keep_n_of_m(torch.tensor([[4.0, -1.0, 2.0, -3.0]]), 2, 4, dim=1)
    tensor([[ True, False, False,  True]])
    """
    weights, dim = weights.detach(), dim % weights.dim()
    if weights.shape[dim] % m:
        raise ValueError(f"has shape {list(weights.shape)}: {m} does not divide its dimension {dim}")
    if not weights.numel():
        return torch.ones_like(weights, dtype=torch.bool)
    if weights.device.type != "cpu" or m > _MOST_COMPARED:
        return _by_order(weights, n, m, dim)
    return _by_comparison(weights, n, m, math.prod(weights.shape[dim + 1 :]))


def _on_cpu(scores: Tensor, count: int) -> Tensor:
    values = (scores if scores.dtype in _NUMPY else scores.float()).contiguous().numpy().reshape(-1)
    return _keep(values, _smallest(values, count), count).reshape(scores.shape)


def _keep(values: Any, threshold: Any, count: int) -> Tensor:
    """True above the threshold, and at it for as many as must stay, from the last on."""
    keep = values > threshold
    surplus = (values.size - count) - np.count_nonzero(keep)
    if surplus:
        _keep_last(keep, np.flatnonzero(values == threshold), surplus)
    return torch.from_numpy(keep)


def _smallest(values: Any, count: int) -> Any:
    """The `count`-th smallest value."""
    lowest = values.min()
    # The least of numbers among which there is a NaN is NaN.
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
    # -0.0 and what stands for zeros are negative here; they mean zero.
    return max(keys[count - 1], bits.dtype.type(0))


def _apart(bits: Any) -> Any:
    """The same numbers, each zero replaced by a negative one of its own: partition is 50 times slower on many ties."""
    keys = bits - 1
    # All ones where the number is 0, for 0 - 1 is negative and the shift fills up with the sign; else all zeros.
    keys >>= 8 * bits.itemsize - 1
    # Each zero becomes a negative number of its own; all other places are 0, and become their number again.
    keys &= np.arange(-bits.size, 0, dtype=bits.dtype)
    keys |= bits
    return keys


def _smallest_of_all(weights: list[Tensor], count: int) -> list[Tensor]:
    if not 0 < count < sum(weight.numel() for weight in weights):
        return [torch.full_like(weight, count <= 0, dtype=torch.bool) for weight in weights]
    if all(weight.device.type == "cpu" for weight in weights):
        return _smallest_of_all_on_cpu(weights, count)
    flat = torch.cat([weight.reshape(-1).abs().to(weights[0].device) for weight in weights])
    parts = torch.split(_on_device(flat, count), [weight.numel() for weight in weights])
    return [part.reshape(weight.shape).to(weight.device) for part, weight in zip(parts, weights, strict=True)]


def _smallest_of_all_on_cpu(weights: list[Tensor], count: int) -> list[Tensor]:
    # Bits can only be compared within one type; the wider one holds the values of the others exactly.
    dtype = torch.float64 if any(weight.dtype == torch.float64 for weight in weights) else torch.float32
    flat = np.empty(sum(weight.numel() for weight in weights), f"i{dtype.itemsize}")
    parts = np.split(flat, np.cumsum([weight.numel() for weight in weights])[:-1])
    for weight, part in zip(weights, parts, strict=True):
        # `initial`, since an empty tensor has no largest weight.
        if _magnitudes(weight.to(dtype), part).max(initial=0) > _INFINITY[dtype]:
            raise ValueError("weights hold NaN: nothing can be ranked by them")
    threshold = _smallest_bits(flat, count, flat)  # which may leave them in another order

    def magnitudes(weight: Tensor) -> Any:
        return _magnitudes(weight.to(dtype), scratch(weight.numel(), flat.dtype))

    keeps = [magnitudes(weight) > threshold for weight in weights]
    surplus = flat.size - count - sum(map(np.count_nonzero, keeps))
    # Ties stay from the last on, as in one tensor: hence the last tensor first.
    for weight, keep in zip(reversed(weights), reversed(keeps), strict=True):
        if surplus:
            surplus -= _keep_last(keep, np.flatnonzero(magnitudes(weight) == threshold), surplus)
    return [torch.from_numpy(keep).reshape(weight.shape) for weight, keep in zip(weights, keeps, strict=True)]


def _magnitudes(weights: Tensor, out: Any) -> Any:
    """The bits without the sign, flat: floats that aren't negative sort like their bits."""
    bits = weights.contiguous().view(_BITS[weights.element_size()]).numpy().reshape(-1)
    return np.bitwise_and(bits, np.iinfo(bits.dtype).max, out=out)


def _keep_last(keep: Any, ties: Any, most: int) -> int:
    """True for the last of these indices, and for how many."""
    chosen = ties[max(len(ties) - most, 0) :]
    keep[chosen] = True
    return len(chosen)


def _by_comparison(weights: Tensor, n: int, m: int, apart: int) -> Tensor:
    """Counts for each weight those of its group that outrank it; neighbours in a group lie `apart` in memory.

    A chunk that stays in the cache is compared as it lies with itself one place on, two places on…: taking the groups
    apart first would cost more than the comparisons between weights of different groups, which do not count.
    """
    bits = weights.contiguous().view(_BITS[weights.element_size()]).numpy().reshape(-1)
    # Chunks hold whole groups, so that the same places serve all of them.
    group = np.repeat(np.arange(m, dtype=np.int8), apart)
    places = np.tile(group, min(max(_CHUNK // group.size, 1), bits.size // group.size))
    keep = np.empty(bits.size, bool)
    for start in range(0, bits.size, places.size):
        part = bits[start : start + places.size]
        magnitudes = np.bitwise_and(part, np.iinfo(part.dtype).max, out=scratch(part.size, part.dtype))
        if magnitudes.max() > _INFINITY[weights.dtype]:
            raise ValueError("weights hold NaN: nothing can be ranked by them")
        outranking = _outranking(magnitudes, places[: part.size], m, apart)
        np.less(outranking, n, out=keep[start : start + part.size])
    return torch.from_numpy(keep).reshape(weights.shape)


def _outranking(magnitudes: Any, places: Any, m: int, apart: int) -> Any:
    """How many of its group are larger than each, or as large and behind it; `places` are those in the group."""
    above = places.copy()  # all that come before it, until one turns out not to be larger
    for distance in range(1, m):
        reach = distance * apart
        behind = magnitudes[reach:] >= magnitudes[:-reach]
        # Else what lies so far behind belongs to the next group.
        behind &= places[:-reach] < m - distance
        above[:-reach] += behind.view(np.int8)
        above[reach:] -= behind.view(np.int8)
    return above


def _by_order(weights: Tensor, n: int, m: int, dim: int) -> Tensor:
    groups = weights.abs().reshape(*weights.shape[:dim], -1, m, *weights.shape[dim + 1 :])
    # Stable, so that of equal ones those that come last stay.
    order = groups.argsort(dim=dim + 1, stable=True)
    keep = torch.zeros_like(groups, dtype=torch.bool)
    keep.scatter_(dim + 1, order.narrow(dim + 1, m - n, n), True)
    return keep.flatten(dim, dim + 1)


def _on_device(scores: Tensor, count: int) -> Tensor:
    # No value leaves the device, so the host never waits for it.
    values = scores.reshape(-1)
    threshold = values.kthvalue(count).values
    keep = values > threshold
    ties = values == threshold
    surplus = (values.numel() - count) - keep.sum()
    # Of the ties the last `surplus`: those whose number, counted from the first, is beyond all that go.
    keep |= ties & (ties.cumsum(0) > ties.sum() - surplus)
    return keep.reshape(scores.shape)
