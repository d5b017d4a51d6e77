"""N:M sparsity: of each M consecutive weights the N largest stay, which some hardware multiplies faster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import Parameter

from prunekit import ArgumentError
from prunekit.components import Context, NonNegativeInt, PositiveInt, Selectors
from prunekit.pruning import keep_n_of_m


@dataclass(kw_only=True)
class NMPruner:
    """Keeps, of each M consecutive weights along a dimension, exactly the N with the largest |w|.

    Of equal ones the first go. Zhou et al. 2021, "Learning N:M fine-grained structured sparse neural networks from
    scratch", arXiv 2102.04010, section 3.1; Mishra et al. 2021, "Accelerating sparse deep neural networks", arXiv
    2104.08378, section 3: 2:4.

    Args:
        weights: the parameters. M must divide the dimension of each.
        n: how many of each group stay, below `m`.
        m: how many consecutive weights are a group.
        dim: the dimension along which they follow each other. 1 is the inputs of linear layers and of convolutions; the
            inputs of a transposed convolution are 0.
    """

    weights: Selectors
    n: PositiveInt = 2
    m: PositiveInt = 4
    dim: NonNegativeInt = 1

    def __post_init__(self) -> None:
        if self.n >= self.m:
            raise ArgumentError("n", message=f"must be below m {self.m}, or nothing is pruned, got {self.n}")

    def check(self, parameters: Mapping[str, Parameter], context: Context) -> Iterator[ArgumentError]:
        """One error for each tensor that can't be divided into groups of M."""
        for name, weight in parameters.items():
            shape = list(weight.shape)
            if self.dim >= len(shape):
                yield ArgumentError(
                    *context.keys[name], message=f"{name!r} has shape {shape} and no dimension {self.dim}"
                )
            elif shape[self.dim] % self.m:
                what = f"{name!r} has shape {shape}: its dimension {self.dim} is not divided into groups of {self.m}"
                yield ArgumentError(*context.keys[name], message=what)

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        return {name: keep_n_of_m(weight, self.n, self.m, self.dim) for name, weight in parameters.items()}
