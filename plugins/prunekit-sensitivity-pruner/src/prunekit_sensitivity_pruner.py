"""Sensitivity pruning: each layer's threshold is a multiple of its own standard deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from prunekit.components import Context, NonNegative, PerParameter


@dataclass
class SensitivityPruner:
    """Keeps the weights w of a tensor with |w| > s * sigma, its standard deviation when it was first pruned.

    The threshold stays, so that weights which training makes smaller fall below it later.
    Han et al. 2015, "Learning both Weights and Connections", arXiv 1506.02626: "a quality parameter multiplied by the
    standard deviation of a layer's weights".

    Args:
        sensitivities: the sensitivity s of each parameter (name, glob or `re:` pattern), not negative; `'*'` is every
            parameter that no other key selects, biases and batch norms included. Tensors of any shape, each measured
            and pruned by itself.
    """

    sensitivities: PerParameter[NonNegative]
    _sigmas: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        for name, weight in parameters.items():
            if name not in self._sigmas:
                self._measure(name, weight, context)
        return {
            name: weight.abs() > context.settings[name] * self._sigmas[name]
            for name, weight in parameters.items()
            if name in self._sigmas
        }

    def state_dict(self) -> dict[str, Any]:
        """The standard deviation of every parameter that has been pruned, by name."""
        return {"sigmas": dict(self._sigmas)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the thresholds of `state_dict()`."""
        self._sigmas = dict(state["sigmas"])

    def _measure(self, name: str, weight: Tensor, context: Context) -> None:
        sigma = standard_deviation(weight)
        if 0 < sigma < math.inf:
            self._sigmas[name] = sigma
        else:
            what = {"parameter": name, "sigma": sigma, "elements": weight.numel()}
            context.warn("no standard deviation to prune by, skipped", **what)


def standard_deviation(weight: Tensor) -> float:
    """The unbiased one (n - 1 in the divisor), in 32 bits or more; NaN of fewer than two elements."""
    if weight.numel() < 2:
        return math.nan
    wide = torch.promote_types(weight.dtype, torch.float32)
    return float(weight.detach().to(wide).std())
