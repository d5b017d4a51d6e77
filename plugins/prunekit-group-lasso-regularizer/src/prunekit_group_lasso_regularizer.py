"""Group lasso: a penalty on the norm of each group of weights, which drives whole groups to zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import Parameter

from prunekit import ArgumentError, Context, Granularity, NonNegative, granularities

GroupType = Literal[
    "2D", "3D", "Filters", "4D", "Channels", "Rows", "Cols", "Rows+Cols", "Cols+Rows", "Channels+4D", "4D+Channels"
]
"""The groups of one tensor; with `+` its weights belong to groups of both shapes."""

_CHANNELS_EPSILON = 1e-8


@dataclass
class GroupLassoRegularizer:
    """Adds strength · Σ_g ||w_g||₂ to the loss, and drops groups where `threshold_criteria` is given.

    Yuan & Lin 2006, "Model selection and estimation in regression with grouped variables", without their √(group size);
    for networks Wen et al. 2016, "Learning structured sparsity in deep neural networks", arXiv 1608.03665, equation 2.

    Args:
        reg_regims: the parameters, each with [strength, group type].
        threshold_criteria: given, groups whose mean (`Mean_Abs`) or largest (`Max`) magnitude is at most `strength`
            are set to zero after each mini-batch.
    """

    reg_regims: dict[str, tuple[NonNegative, GroupType]]
    threshold_criteria: Literal["Mean_Abs", "Max"] | None = None

    def __post_init__(self) -> None:
        if not self.reg_regims:
            raise ArgumentError("reg_regims", message="names no parameter")
        for selector, (_, group) in self.reg_regims.items():
            if group not in get_args(GroupType):
                known = ", ".join(map(repr, get_args(GroupType)))
                raise ArgumentError("reg_regims", selector, 1, message=f"must be one of {known}, got {group!r}")

    @property
    def targets(self) -> Mapping[str, tuple[float, GroupType]]:
        return self.reg_regims

    @property
    def thresholds(self) -> bool:
        """Whether groups are dropped."""
        return self.threshold_criteria is not None

    def check(self, parameters: Mapping[str, Parameter], context: Context) -> Iterator[ArgumentError]:
        """One error for each parameter that has no such groups."""
        for name, weight in parameters.items():
            _, group = context.targets[name]
            if not all(granularity.fits(weight) for granularity in granularities(group)):
                message = f"{name!r} has shape {list(weight.shape)} and no groups {group!r}; {_fitting(weight)}"
                yield ArgumentError("reg_regims", context.selectors[name], message=message)

    def penalty(self, parameters: Mapping[str, Parameter], context: Context) -> Tensor:
        terms = []
        for name, weight in parameters.items():
            strength, group = context.targets[name]
            terms += [strength * _norms(weight, granularity).sum() for granularity in granularities(group)]
        return torch.stack(terms).sum()

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        """A weight stays if every group that it belongs to does."""
        masks = {}
        for name, weight in parameters.items():
            strength, group = context.targets[name]
            kept = torch.ones_like(weight, dtype=torch.bool)
            for granularity in granularities(group):
                kept &= self._magnitudes(weight, granularity) > strength
            masks[name] = kept
        return masks

    def _magnitudes(self, weight: Tensor, granularity: Granularity) -> Tensor:
        return granularity.max_abs(weight) if self.threshold_criteria == "Max" else granularity.mean_abs(weight)


def _norms(weight: Tensor, granularity: Granularity) -> Tensor:
    """The L2 norm of each group; that of channels is kept off zero, where published runs have it so."""
    if granularity.name == "Channels":
        return (weight.square().sum(granularity.reduced(weight)) + _CHANNELS_EPSILON).sqrt()
    return granularity.l2(weight)


def _fitting(weight: Tensor) -> str:
    names = [group for group in get_args(GroupType) if all(g.fits(weight) for g in granularities(group))]
    return f"it has {', '.join(map(repr, names))}" if names else "a vector has no groups at all"
