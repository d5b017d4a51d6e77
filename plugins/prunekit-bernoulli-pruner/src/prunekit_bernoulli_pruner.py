"""Bernoulli pruning: a coin is tossed for each filter at every pruning, as dropout does for activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from prunekit.components import Context, OverTime, Probability
from prunekit.pruning import FixedSparsity, GradualSparsity, Groups, RankedPruner


@dataclass(kw_only=True)
class Bernoulli(RankedPruner):
    """Keeps each group with probability 1 - p, by a coin of its own; where all would go, one of them stays.

    Args:
        group_dependency: `Leader` drops in every tensor the groups that were drawn for the first of `weights`.
        seed: of the coins, which are tossed anew at every pruning; the same on all ranks and after a resume.
    """

    regrows: ClassVar[bool] = True
    # Each coin falls alone: nothing is rounded, ranked or taken in multiples.
    group_size: int = field(default=1, init=False)
    rounding_fn: Literal["floor"] = field(default="floor", init=False)
    noise: float = field(default=0, init=False)

    def scores(self, name: str, weight: Tensor, groups: Groups, context: Context) -> Tensor:
        return torch.rand(groups.number, generator=self.generator(context, name))

    def choose(self, name: str, scores: Tensor, sparsity: float, context: Context) -> Tensor | None:
        """Which groups stay [number]: those that drew p or more, and the highest in any case."""
        if not sparsity or not scores.numel():
            return None
        keep = scores >= sparsity
        keep[scores.argmax()] = True
        return keep

    def forward_scales(self, masks: Mapping[str, Tensor]) -> Mapping[str, float]:
        """n / kept of each parameter."""
        return {name: mask.numel() / int(mask.sum()) for name, mask in masks.items()}


@dataclass(kw_only=True)
class BernoulliFilterPruner(FixedSparsity, Bernoulli):
    """Drops each filter, or other group, with a given probability, and scales up those it keeps (DropFilter).

    In the forward pass w' = w · m · n / Σ m, where m ~ Bernoulli(1 - p) for each of n filters. Chen et al. 2018,
    "DropFilter: dropout for convolutions", arXiv 1810.09849; Pan et al. 2018, "DropFilter: a novel regularization
    method for learning convolutional neural networks", arXiv 1811.06783.

    Args:
        desired_sparsity: the probability p with which a group is dropped, 0 to 1.
    """

    desired_sparsity: OverTime[Probability]


@dataclass(kw_only=True)
class BernoulliFilterPruner_AGP(GradualSparsity, Bernoulli):  # noqa: N801  # the language's name
    """Drops each filter, or other group, with a probability that rises along a curve, and scales up those it keeps.

    In the forward pass w' = w · m · n / Σ m, where m ~ Bernoulli(1 - p) for each of n filters. DropFilter, arXiv
    1810.09849 and 1811.06783; p rises as the sparsity of Zhu & Gupta 2017, arXiv 1710.01878, equation 1, does.

    Args:
        initial_sparsity: the probability p with which a group is dropped at the first active epoch, 0 to 1.
        final_sparsity: p at the last active epoch, above the initial one.
    """

    initial_sparsity: Probability
    final_sparsity: Probability
