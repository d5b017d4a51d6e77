"""Splicing: weights that fall below one threshold are cut, and spliced back when they grow past a higher one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from prunekit import ArgumentError
from prunekit.components import Context, NonNegative, PerParameter


class Statistics(NamedTuple):
    """Of the magnitudes |w| of a tensor: their mean, and their standard deviation (n - 1 in the divisor)."""

    mean: float
    deviation: float


@dataclass(kw_only=True)
class SplicingPruner:
    """Cuts the weights w with |w| < a, splices in those with |w| >= b, and leaves those in between as they were.

    Guo et al. 2016, "Dynamic network surgery for efficient DNNs", arXiv 1608.04493, equation 3, with the thresholds
    a = low * (mu + s * sigma) and b = hi * (mu + s * sigma), where mu and sigma are the mean and the standard deviation
    of |w| when the tensor was first pruned.

    Args:
        sensitivities: the sensitivity s of each parameter (name, glob or `re:` pattern), not negative; `'*'` is every
            parameter that no other key selects, biases included. Tensors of any shape, each measured by itself.
        low_thresh_mult: the factor `low` of the threshold below which a weight is cut.
        hi_thresh_mult: the factor `hi` of the threshold from which on a weight is spliced back, not below
            `low_thresh_mult`. Between the two thresholds nothing changes.
        sensitivity_multiplier: how much s grows: e epochs after the window's first it is s * (1 + e * this).
    """

    sensitivities: PerParameter[NonNegative]
    low_thresh_mult: NonNegative
    hi_thresh_mult: NonNegative
    sensitivity_multiplier: NonNegative = 0
    _statistics: dict[str, Statistics] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.hi_thresh_mult < self.low_thresh_mult:
            what = f"must not be below low_thresh_mult {self.low_thresh_mult}, got {self.hi_thresh_mult}"
            raise ArgumentError("hi_thresh_mult", message=what)

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        for name, weight in parameters.items():
            if name not in self._statistics:
                self._measure(name, weight, context)
        return {
            name: self._mask(name, weight, context) for name, weight in parameters.items() if name in self._statistics
        }

    def state_dict(self) -> dict[str, Any]:
        """Mean and standard deviation of the magnitudes of every parameter that has been pruned, by name."""
        return {"statistics": {name: list(statistics) for name, statistics in self._statistics.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the thresholds of `state_dict()`."""
        self._statistics = {name: Statistics(*statistics) for name, statistics in state["statistics"].items()}

    def _mask(self, name: str, weight: Tensor, context: Context) -> Tensor:
        epochs = context.window.elapsed(context.progress)
        sensitivity = context.settings[name] * (1 + epochs * self.sensitivity_multiplier)
        mean, deviation = self._statistics[name]
        middle, magnitudes = mean + sensitivity * deviation, weight.abs()
        stays: Tensor = magnitudes >= middle * self.low_thresh_mult
        if name in context.masks:
            stays = stays & context.masks[name] | (magnitudes >= middle * self.hi_thresh_mult)
        return stays

    def _measure(self, name: str, weight: Tensor, context: Context) -> None:
        statistics = statistics_of(weight)
        if 0 < statistics.deviation < math.inf:
            self._statistics[name] = statistics
        else:
            what = {"parameter": name, **statistics._asdict(), "elements": weight.numel()}
            context.warn("magnitudes that do not differ, nothing to prune by, skipped", **what)


def statistics_of(weight: Tensor) -> Statistics:
    """Of the magnitudes, in 32 bits or more; NaN of fewer than two elements."""
    if weight.numel() < 2:
        return Statistics(math.nan, math.nan)
    wide = torch.promote_types(weight.dtype, torch.float32)
    deviation, mean = torch.std_mean(weight.detach().abs().to(wide))
    return Statistics(float(mean), float(deviation))
