"""Masks under a budget: how many weights each tensor keeps, and how they move while that number stays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from prunekit.pruning.selection import prune_count

Distribution = Literal["uniform", "erdos-renyi", "erdos-renyi-kernel"]
"""How one sparsity is spread over tensors of several shapes; `budgets` says what each means."""


def budgets(
    shapes: Mapping[str, Sequence[int]], sparsity: float, distribution: Distribution = "uniform"
) -> dict[str, int]:
    """How many weights each tensor keeps.

    `uniform` prunes floor(s · n) of each tensor. The other two prune floor(s · N) of all N together, and give a tensor
    a share of what is kept in proportion to

    - `erdos-renyi`: its inputs plus its outputs, times the size of its kernel. Mocanu et al. 2018, arXiv 1707.04780,
      equation 3, where the density of a matrix is ε (n_out + n_in) / (n_out · n_in);
    - `erdos-renyi-kernel`: the sum of all its dimensions. Evci et al. 2020, arXiv 1911.11134, section 3 (1).

    A tensor whose share is more than it has stays dense, and the others share what is left. What remains after rounding
    down goes to the largest fractions, of equal ones to those that come first. Tensors with fewer than two dimensions
    count as ones of density ε.

    Args:
        shapes: of each tensor; dimension 0 is outputs, 1 inputs, and those behind them the kernel.
        sparsity: the fraction of zeros.
        distribution: which of the three.

    >>> budgets({"small": (2, 4), "large": (8, 8)}, 0.5, "erdos-renyi")
    {'small': 8, 'large': 28}
    >>> budgets({"small": (2, 4), "large": (8, 8)}, 0.75, "erdos-renyi")
    {'small': 5, 'large': 13}
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if distribution == "uniform":
        return {name: size - math.floor(sparsity * size) for name, size in sizes.items()}
    shares = {name: _share(shape, distribution) for name, shape in shapes.items()}
    total = sum(sizes.values())
    left = total - math.floor(sparsity * total)
    kept: dict[str, int] = {}
    # Again after each round: what full tensors can't take goes to the others, of which more may be full then.
    while full := _full(sizes, shares, left):
        for name in full:
            kept[name] = sizes[name]
            left -= sizes[name]
            del shares[name]
    kept |= _divided(left, shares)
    return {name: kept[name] for name in shapes}


def drop_lowest(mask: Tensor, scores: Tensor, fraction: float) -> Tensor:
    """Of the kept ones those floor(fraction · kept) go that score lowest, of equal ones those that come first.

    Args:
        mask: any shape; True keeps.
        scores: shaped like the mask.
        fraction: of what is kept, 0 to 1.

    >>> drop_lowest(torch.tensor([True, True, False, True]), torch.tensor([2.0, 1.0, 0.0, 3.0]), 0.5)
    tensor([ True, False, False,  True])
    """
    kept = mask.reshape(-1).nonzero().squeeze(1)
    stay = kept[prune_count(scores.reshape(-1)[kept], math.floor(fraction * kept.numel()))]
    return _with(torch.zeros_like(mask), stay)


def grow_highest(mask: Tensor, scores: Tensor, kept: int) -> Tensor:
    """Of the pruned ones those come that score highest, of equal ones those that come last, until `kept` are kept.

    Args:
        mask: any shape; True keeps.
        scores: shaped like the mask, not negative.
        kept: how many there are to be; a mask that has more is returned as it is.

    >>> grow_highest(torch.tensor([True, False, False, False]), torch.tensor([9.0, 1.0, 3.0, 2.0]), 3)
    tensor([ True, False,  True,  True])
    """
    pruned = (~mask.reshape(-1)).nonzero().squeeze(1)
    more = max(kept - (mask.numel() - pruned.numel()), 0)
    grown = pruned[prune_count(scores.reshape(-1)[pruned], pruned.numel() - more)]
    return _with(mask, grown)


def random_mask(scores: Tensor, kept: int) -> Tensor:
    """The mask that keeps `kept` weights, where the draws are highest."""
    return grow_highest(torch.zeros_like(scores, dtype=torch.bool), scores, kept)


def _share(shape: Sequence[int], distribution: Distribution) -> int:
    """A tensor's size times its density, but for a factor that all tensors have in common."""
    if len(shape) < 2:
        return math.prod(shape)
    return sum(shape) if distribution == "erdos-renyi-kernel" else (shape[0] + shape[1]) * math.prod(shape[2:])


def _full(sizes: Mapping[str, int], shares: Mapping[str, int], left: int) -> list[str]:
    """The tensors of which all must be kept, and more if there were more."""
    total = sum(shares.values())
    # Multiplied out, so that nothing is rounded. Empty tensors count as full: the shares that are left are above 0.
    return [name for name, share in shares.items() if left * share >= sizes[name] * total]


def _divided(number: int, shares: Mapping[str, int]) -> dict[str, int]:
    """A number divided in proportion to shares, in whole parts: largest remainders first."""
    total = sum(shares.values())
    parts = {name: divmod(number * share, total) for name, share in shares.items()}
    rest = number - sum(whole for whole, _ in parts.values())
    # `sorted` is stable: of equal remainders those that come first are the luckiest.
    luckiest = sorted(parts, key=lambda name: -parts[name][1])[:rest]
    return {name: whole + (name in luckiest) for name, (whole, _) in parts.items()}


def _with(mask: Tensor, indices: Tensor) -> Tensor:
    """The mask, True at these places too."""
    flat = mask.reshape(-1).clone()
    flat[indices] = True
    return flat.reshape(mask.shape)
