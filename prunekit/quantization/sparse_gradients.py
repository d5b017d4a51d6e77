"""Embeddings with `sparse=True`: quantizers see dense gradients, as they are written for, the optimizer sparse ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd import Function


@dataclass(frozen=True)
class WithSparseGradients:
    """What is read in place of a weight [rows, …] whose gradient is sparse; rows that are 0 in it are left out."""

    read: Callable[[Tensor], Tensor]

    def __call__(self, weight: Tensor) -> Tensor:
        """The values that the forward pass uses for the weight."""
        values: Tensor = _Dense.apply(self.read(_Sparse.apply(weight)))  # type: ignore[no-untyped-call]
        return values


class _Dense(Function):
    """The identity; from here on backwards the gradient is dense."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].to_dense() if gradients[0].is_sparse else gradients[0]


class _Sparse(Function):
    """The identity; from here on backwards the gradient is sparse."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] if gradients[0].is_sparse else gradients[0].to_sparse(1)
