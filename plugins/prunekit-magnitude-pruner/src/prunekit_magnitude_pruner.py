"""Magnitude pruning: weights at or below a fixed threshold go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import Parameter

from prunekit.components import Context, NonNegative, PerParameter


@dataclass
class MagnitudeParameterPruner:
    """Keeps the weights w with |w| > t.

    How many that are follows from the weights, so the sparsity is a result and not a setting. Han et al. 2015,
    "Learning both Weights and Connections", arXiv 1506.02626: "All connections with weights below a threshold are
    removed".

    Args:
        thresholds: the threshold t of each parameter (name, glob or `re:` pattern), not negative, in the units of its
            weights; `'*'` is every parameter that no other key selects, biases included. Tensors of any shape. The
            comparison is made in the weight's own type: t is rounded to it first.
    """

    thresholds: PerParameter[NonNegative]

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        return {name: weight.abs() > context.settings[name] for name, weight in parameters.items()}
