"""Gradients as a component may take them: all elements in memory, without a scale, finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class Gradients:
    """The gradients of the parameters that one policy owns.

    Attributes:
        scale: what they are too large by, because the optimizer itself takes the scale of mixed precision out of them.
    """

    scale: Tensor | None = None
    _warn: Callable[..., None] | None = None
    _left_out: Tensor | None = None
    _told: bool = False

    def of(self, parameter: Tensor, warn: Callable[..., None] | None = None) -> Tensor | None:
        """The gradient of a parameter, dense; None where there is none.

        `warn`: where to say, once, that a gradient was not finite; it is all zeros then. None lets it pass.
        """
        gradient = parameter.grad
        if gradient is None:
            return None
        if gradient.layout != torch.strided:
            gradient = gradient.to_dense()
        if self.scale is not None:
            gradient = gradient / self.scale.to(gradient.device)
        return gradient if warn is None else self._finite(gradient, warn)

    def tell(self) -> None:
        """Say, once, that gradients have been left out: on a device it is known when somebody waits for that anyway."""
        if self._left_out is not None and not self._told and bool(self._left_out):
            assert self._warn is not None
            self._told = True
            self._warn("gradients that are not finite were left out")
        self._left_out = None

    def _finite(self, gradient: Tensor, warn: Callable[..., None]) -> Tensor:
        # One pass, no memory: a sum is not finite where an element is not, and in 64 bits it does not overflow.
        wide = torch.float32 if gradient.device.type == "mps" else torch.float64
        bad = ~gradient.sum(dtype=wide).isfinite()
        if gradient.device.type == "cpu" and not bad:
            return gradient
        self._warn, before = warn, self._left_out
        self._left_out = bad if before is None else before.to(bad.device) | bad
        if gradient.device.type == "cpu":
            self.tell()
        return torch.where(bad, 0, gradient)
