"""Terms of the loss: what implementations of `before_backward_pass` return, and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from prunekit.errors import PluginError, shortened


@dataclass(frozen=True)
class LossTerm:
    """A named scalar that is added to the loss.

    It is no effect: it is a value, through which gradients flow, and there is nothing to undo.
    """

    name: str
    value: Tensor

    def must_fit(self) -> None:
        """Whether it can be added to a loss.

        Raises:
            PluginError: it is no scalar.
        """
        if not isinstance(self.value, Tensor) or self.value.numel() != 1:
            shape = f"a tensor of shape {tuple(self.value.shape)}" if isinstance(self.value, Tensor) else None
            raise PluginError(
                f"the loss term {self.name!r} must be a scalar tensor, got {shape or shortened(self.value)}"
            )

    def __str__(self) -> str:
        return f"LossTerm {self.name!r}"


class LossComponent(NamedTuple):
    """A term that was added to a loss, with its name."""

    name: str
    value: Tensor


class PolicyLoss(NamedTuple):
    """A loss and what policies made of it: the sum to call `backward()` on, and each term of theirs in it."""

    overall_loss: Tensor
    loss_components: list[LossComponent]
