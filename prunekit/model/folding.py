"""A batch normalization folded into the convolution before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def folded_weight(weight: Tensor, batchnorm: Any) -> Tensor:
    """A convolution's weight [out, in, …] times gamma / sqrt(running_var + eps) of its batch normalization.

    Ioffe & Szegedy 2015, arXiv 1502.03167: at inference a batch normalization is that factor on each filter.
    """
    factor = torch.rsqrt(batchnorm.running_var + batchnorm.eps)
    if batchnorm.weight is not None:
        factor = factor * batchnorm.weight
    return weight * factor.reshape(-1, *[1] * (weight.dim() - 1))
