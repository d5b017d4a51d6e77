"""Group variance: a penalty that is large while all channels have the same norm, and so drives them apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from prunekit import ArgumentError
from prunekit.components import Context, NonNegative, OverTime, PerParameter
from prunekit.pruning import Groups, granularities

GroupType = Literal["Channels"]
"""The groups of one tensor."""


@dataclass
class GroupVarianceRegularizer:
    """Adds strength / var(||w_c||₂ over the input channels c) to the loss: the variance of their L2 norms, unbiased.

    Torfi et al. 2018, "Attention-based guided structured sparsity of deep neural networks", arXiv 1802.09902: group
    sparsity in which a few groups matter much and the others little.

    Args:
        reg_regims: the parameters (names, globs, `re:` patterns), each with [strength, group type]; the group type is
            `Channels`, the input channels of a convolution.
    """

    reg_regims: PerParameter[tuple[OverTime[NonNegative], GroupType]]

    def check(self, parameters: Mapping[str, Parameter], context: Context) -> Iterator[ArgumentError]:
        """One error for each parameter that has no channels, or only one."""
        for name, weight in parameters.items():
            try:
                number = _channels(weight).number
                message = f"{name!r} has {number} channel{'s' * (number != 1)}: a variance takes two"
            except ValueError as error:
                number, message = 0, f"{name!r} {error}"
            if number < 2:
                yield ArgumentError(*context.keys[name], message=message)

    def penalty(self, parameters: Mapping[str, Parameter], context: Context) -> Tensor:
        variances, varied = zip(*(_variance(weight) for weight in parameters.values()), strict=True)
        if context.progress.minibatch <= 0:  # once an epoch: looking means waiting for the device
            for name, usable in zip(parameters, varied, strict=True):
                if not usable:
                    context.warn("channels whose norms do not differ, no penalty", parameter=name)
        strengths = [context.now(context.settings[name][0]) for name in parameters]
        terms = [
            torch.where(usable, strength / torch.where(usable, variance, 1), 0)
            for strength, variance, usable in zip(strengths, variances, varied, strict=True)
        ]
        return torch.stack(terms).sum()


def _variance(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The variance of the channels' norms, and whether it is one: above what rounding alone makes of equal norms."""
    norms = _channels(weight).l2(weight)
    variance, mean = torch.var_mean(norms)
    rounding = 4 * torch.finfo(norms.dtype).eps * mean.detach()
    return variance, variance.detach() > rounding.square()


def _channels(weight: Tensor) -> Groups:
    (channels,) = granularities("Channels")
    return channels.groups(weight)
