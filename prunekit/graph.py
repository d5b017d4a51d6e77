"""What a model's data flow says about its modules, as far as torch.fx can trace it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import Module

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def following_batchnorms(model: Module) -> dict[str, str]:
    """Convolution -> the batch normalization that alone takes its output, by module name.

    Raises:
        Exception: whatever torch.fx raised because it can't trace the model.
    """
    modules = dict(model.named_modules())
    pairs = {}
    for node in _Tracer().trace(model).nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        before, after = modules[str(source.target)], modules[str(node.target)]
        if isinstance(before, _CONVOLUTIONS) and isinstance(after, _BATCH_NORMS):
            pairs[str(source.target)] = str(node.target)
    return pairs


def folded_weight(weight: Tensor, batchnorm: Any) -> Tensor:
    """A convolution's weight [out, in, …] times gamma / sqrt(running_var + eps) of its batch normalization.

    Ioffe & Szegedy 2015, arXiv 1502.03167: at inference a batch normalization is that factor on each filter.
    """
    factor = torch.rsqrt(batchnorm.running_var + batchnorm.eps)
    if batchnorm.weight is not None:
        factor = factor * batchnorm.weight
    return weight * factor.reshape(-1, *[1] * (weight.dim() - 1))


class _Tracer(fx.Tracer):
    """Looks into everything but torch's own layers."""

    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        return m.__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential | nn.ModuleList)
