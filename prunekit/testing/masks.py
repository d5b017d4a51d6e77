"""Small helpers of tests about masks: a model that is nothing but weights, and what a mask says of whole groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter


def weights_model(**weights: Any) -> Module:
    """A model that computes nothing, with a parameter `a.weight` for `a=[…]` (a list of lists, or a tensor)."""
    model = Module()
    for name, values in weights.items():
        layer = Module()
        tensor = torch.as_tensor(values).clone()
        layer.weight = Parameter(tensor if tensor.is_floating_point() else tensor.float())
        model.add_module(name, layer)
    return model


def groups_gone(mask: Tensor, dim: int = 0) -> list[int]:
    """The indices along a dimension that are pruned (False).

    Raises:
        AssertionError: one of them is neither kept nor pruned whole.
    """
    flat = mask.movedim(dim, 0).flatten(1)
    assert torch.equal(flat.all(1), flat.any(1)), f"groups of dimension {dim} are pruned in part"
    return (~flat[:, 0]).nonzero().flatten().tolist()
