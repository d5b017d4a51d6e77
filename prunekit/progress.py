"""Where training stands, and the window of epochs in which a policy acts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple


class Progress(NamedTuple):
    """A moment of training. Epochs and mini-batches count from 0.

    `minibatch` is -1 before the first mini-batch of an epoch; `minibatches_per_epoch` is 0 while unknown.
    """

    epoch: int
    minibatch: int = -1
    minibatches_per_epoch: int = 0

    @property
    def step(self) -> int:
        """Mini-batches since the start of training (exact: integers only)."""
        return self.epoch * self.minibatches_per_epoch + self.minibatch

    @property
    def is_last_minibatch(self) -> bool:
        """Whether the epoch ends with this mini-batch."""
        return self.minibatch == self.minibatches_per_epoch - 1

    @property
    def moment(self) -> dict[str, int]:
        """Epoch and, within an epoch, mini-batch: the keys of a trace line."""
        return {"epoch": self.epoch} | ({"minibatch": self.minibatch} if self.minibatch >= 0 else {})


@dataclass(frozen=True, init=False)
class Window:
    """The epochs in which a policy acts: `range(starting_epoch, ending_epoch, frequency)`, or the ones listed.

    >>> list(Window(0, 7, 2).active)
    [0, 2, 4, 6]
    >>> Window(epochs=[3, 5]).last
    5
    """

    starting_epoch: int
    ending_epoch: int
    frequency: int
    epochs: tuple[int, ...] | None

    def __init__(
        self,
        starting_epoch: int = 0,
        ending_epoch: int = 0,
        frequency: int = 1,
        *,
        epochs: Sequence[int] | None = None,
    ) -> None:
        if epochs is not None:
            if not epochs or epochs[0] < 0 or any(a >= b for a, b in pairwise(epochs)):
                raise ValueError(f"epochs must be ascending, not negative and at least one, got {list(epochs)}")
            starting_epoch, ending_epoch, frequency = epochs[0], epochs[-1] + 1, 1
        if not 0 <= starting_epoch < ending_epoch:
            raise ValueError(f"0 <= starting_epoch < ending_epoch must hold, got {starting_epoch} and {ending_epoch}")
        if frequency < 1:
            raise ValueError(f"frequency must be at least 1, got {frequency}")
        object.__setattr__(self, "starting_epoch", starting_epoch)
        object.__setattr__(self, "ending_epoch", ending_epoch)
        object.__setattr__(self, "frequency", frequency)
        object.__setattr__(self, "epochs", None if epochs is None else tuple(epochs))

    @property
    def active(self) -> Sequence[int]:
        """The active epochs, ascending."""
        if self.epochs is not None:
            return self.epochs
        return range(self.starting_epoch, self.ending_epoch, self.frequency)

    @property
    def first(self) -> int:
        """The first active epoch."""
        return self.starting_epoch

    @property
    def last(self) -> int:
        """The last active epoch (`ending_epoch` itself is never active)."""
        return self.active[-1]

    def is_active(self, epoch: int) -> bool:
        """Whether the policy acts in this epoch."""
        return epoch in self.active

    def is_open(self, epoch: int) -> bool:
        """Whether the epoch lies between the first and the last active one, both included."""
        return self.first <= epoch <= self.last

    def scaled(self, factor: float) -> Window:
        """The window in a run that is `factor` times as long: every number of epochs times that, rounded down.

        A window keeps at least one active epoch, and windows that follow each other still do.

        >>> Window(4, 16, 2).scaled(0.5)
        Window(starting_epoch=2, ending_epoch=8, frequency=1, epochs=None)
        """
        if self.epochs is not None:
            return Window(epochs=sorted({math.floor(epoch * factor) for epoch in self.epochs}))
        start, frequency = math.floor(self.starting_epoch * factor), max(math.floor(self.frequency * factor), 1)
        return Window(start, max(math.floor(self.ending_epoch * factor), start + 1), frequency)

    def fraction(self, epoch: int) -> float:
        """How far the window has come: 0 at the first active epoch, 1 at the last (and where there is only one)."""
        span = self.last - self.first
        return (epoch - self.first) / span if span else 1.0
