"""The shapes of structure: which weights of a tensor are kept or dropped as one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Granularity:
    """Groups of one tensor: all elements that share their index in the dimensions that stay.

    `reduced(ndim)` are the dimensions inside a group; `ndim` the tensors' dimensions that it fits.
    """

    name: str
    meaning: str
    keeps: tuple[int, ...]
    least_ndim: int
    most_ndim: int

    def fits(self, tensor: Tensor) -> bool:
        """Whether a tensor of this shape has such groups."""
        return self.least_ndim <= tensor.dim() <= self.most_ndim

    def reduced(self, tensor: Tensor) -> tuple[int, ...]:
        """The dimensions of `tensor` that lie inside a group."""
        return tuple(d for d in range(tensor.dim()) if d not in self.keeps)

    def l2(self, tensor: Tensor) -> Tensor:
        """The L2 norm of each group, in a shape that broadcasts over `tensor`."""
        norm: Tensor = torch.linalg.vector_norm(tensor, dim=self.reduced(tensor), keepdim=True)
        return norm

    def mean_abs(self, tensor: Tensor) -> Tensor:
        """The mean magnitude of each group, in a shape that broadcasts over `tensor`."""
        return tensor.abs().mean(dim=self.reduced(tensor), keepdim=True)

    def max_abs(self, tensor: Tensor) -> Tensor:
        """The largest magnitude in each group, in a shape that broadcasts over `tensor`."""
        return tensor.abs().amax(dim=self.reduced(tensor), keepdim=True)


_MANY = 9
_FILTERS = ("one output filter of a convolution", (0,), 3, _MANY)
_ALL = (
    Granularity("2D", "one kernel: the weights between an input and an output channel", (0, 1), 4, 4),
    Granularity("3D", *_FILTERS),
    Granularity("Filters", *_FILTERS),
    Granularity("4D", "a whole convolution", (), 4, 4),
    Granularity("Channels", "one input channel of a convolution", (1,), 3, _MANY),
    Granularity("Rows", "one row of a matrix: an output", (0,), 2, 2),
    Granularity("Cols", "one column of a matrix: an input", (1,), 2, 2),
)
GRANULARITIES = {granularity.name: granularity for granularity in _ALL}
"""Every granularity by its name in the schedule language."""


def granularities(name: str) -> tuple[Granularity, ...]:
    """The granularities of a name such as `3D` or `Rows+Cols`.

    Raises:
        ValueError: the name holds a part that is no granularity.
    """
    unknown = [part for part in name.split("+") if part not in GRANULARITIES]
    if unknown:
        raise ValueError(
            f"no granularity is called {unknown[0]!r}; known are {', '.join(GRANULARITIES)}, joined by '+'"
        )
    return tuple(GRANULARITIES[part] for part in name.split("+"))
