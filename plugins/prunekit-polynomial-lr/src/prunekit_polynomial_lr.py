"""A learning rate that falls to zero along a polynomial."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prunekit import ArgumentError
from prunekit.components import NonNegative


class PolynomialLR(LRScheduler):
    """lr(t) = base · |1 - t/T_max|^power, or with `total_iters` the same until it reaches zero and stays there.

    Exactly one of `T_max` and `total_iters` is given. After `T_max` the rate rises again, as in published schedules
    with an even power; the magnitude keeps the other powers from a negative rate.

    Args:
        optimizer: whose groups give the base learning rates.
        T_max: the epoch at which the rate is zero, and turns; at least 1.
        power: 1 is a straight line, 2 falls fast and then ever slower.
        total_iters: the epoch from which on the rate is zero; at least 1.
        last_epoch: the epoch to continue from; -1 starts anew.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_max: int | None = None,  # noqa: N803 - the key's published spelling
        power: NonNegative = 1.0,
        total_iters: int | None = None,
        last_epoch: int = -1,
    ) -> None:
        given = {key: value for key, value in (("T_max", T_max), ("total_iters", total_iters)) if value is not None}
        if len(given) != 1:
            got = "both" if given else "neither"
            raise ArgumentError(message=f"PolynomialLR needs exactly one of 'T_max' and 'total_iters', got {got}")
        for key, value in given.items():
            if value < 1:
                raise ArgumentError(key, message=f"must be at least 1, got {value}")
        if not power >= 0:
            raise ArgumentError("power", message=f"must not be negative, got {power}")
        (self.length,) = given.values()
        self.rises_again, self.power = T_max is not None, power
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each group at `last_epoch`."""
        left = 1 - self.last_epoch / self.length
        left = abs(left) if self.rises_again else max(0.0, left)
        return [base * left**self.power for base in self.base_lrs]
