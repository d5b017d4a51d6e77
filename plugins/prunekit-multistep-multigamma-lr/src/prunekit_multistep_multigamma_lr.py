"""A learning rate that is multiplied at milestones, by a factor of each milestone's own."""

from __future__ import annotations

from math import prod

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prunekit import ArgumentError


class MultiStepMultiGammaLR(LRScheduler):
    """lr(t) = base · Π gammas of the milestones <= t.

    Args:
        optimizer: whose groups give the base learning rates.
        milestones: epochs, ascending.
        gammas: the factor of each milestone.
        last_epoch: the epoch to continue from; -1 starts anew.
    """

    def __init__(self, optimizer: Optimizer, milestones: list[int], gammas: list[float], last_epoch: int = -1) -> None:
        if milestones != sorted(milestones):
            raise ArgumentError("milestones", message=f"must be ascending, got {milestones}")
        if len(gammas) != len(milestones):
            what = f"must be as many as the {len(milestones)} milestones, got {len(gammas)}"
            raise ArgumentError("gammas", message=what)
        self.milestones, self.gammas = list(milestones), list(gammas)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each group at `last_epoch`."""
        steps = zip(self.milestones, self.gammas, strict=True)
        factor = prod(gamma for milestone, gamma in steps if milestone <= self.last_epoch)
        return [base * factor for base in self.base_lrs]
