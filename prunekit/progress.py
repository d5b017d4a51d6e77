"""Time: where training stands, and the window in which a policy acts. Integers only, and nobody else computes with it.

A window has a unit of its own, the epoch. It is asked with a `Progress`, never with a number, so that whoever asks need
not know which unit it is: curves take `fraction`, learning rates `time`, the scheduler `begin_hook` and `end_hook`.

Long on purpose: all arithmetic on epochs and mini-batches stands here, so that no other module does any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple


class Progress(NamedTuple):
    """A moment of training. All numbers count from 0.

    Attributes:
        epoch: which epoch it is; -1 before training.
        minibatch: which mini-batch of the epoch; -1 before the first and after the last.
        minibatches_per_epoch: how many there are; 0 while unknown.
        step: which step of the optimizer: how many were taken before this mini-batch.
        minibatch_of_step: which mini-batch of that step (gradients may be accumulated); -1 before the first of all.
        stepped: whether the optimizer has taken that step.
    """

    epoch: int
    minibatch: int = -1
    minibatches_per_epoch: int = 0
    step: int = 0
    minibatch_of_step: int = -1
    stepped: bool = False

    @property
    def minibatch_of_run(self) -> int:
        """Which mini-batch since the start of training: the first of epoch 2 is 20 where epochs have 10."""
        return self.epoch * self.minibatches_per_epoch + self.minibatch

    @property
    def is_last_minibatch(self) -> bool:
        """Whether the epoch ends with this mini-batch."""
        return self.minibatch == self.minibatches_per_epoch - 1

    @property
    def next_epoch(self) -> int:
        """The epoch after this one: how many are complete when this one is."""
        return self.epoch + 1

    def trace_keys(self) -> dict[str, int]:
        """Epoch and, within an epoch, mini-batch: the keys of a trace line. What is before training counts to epoch 0.

        >>> Progress(2).trace_keys(), Progress(2, 0).trace_keys()
        ({'epoch': 2}, {'epoch': 2, 'minibatch': 0})
        """
        within = {"minibatch": self.minibatch} if self.minibatch >= 0 else {}
        return {"epoch": max(self.epoch, 0), **within}


BEFORE_TRAINING = Progress(-1, step=-1)
"""Before all epochs and steps: the first window that opens may be prepared for from here on."""


@dataclass(slots=True)
class Clock:
    """Where training stands, moved on by what the loop tells, and read as a `Progress`.

    It changes in place: it moves several times in each mini-batch, mostly with nobody to read it.
    """

    epoch: int = 0
    minibatch: int = -1
    minibatches_per_epoch: int = 0
    step: int = 0
    minibatch_of_step: int = -1
    stepped: bool = False  # several optimizers that step in one mini-batch take one step together

    @property
    def progress(self) -> Progress:
        """This moment."""
        within_epoch = self.epoch, self.minibatch, self.minibatches_per_epoch
        return Progress(*within_epoch, self.step, self.minibatch_of_step, self.stepped)

    def restore(self, progress: Sequence[Any]) -> None:
        """Go on from a `Progress`, given as a tuple."""
        self.epoch, self.minibatch, self.minibatches_per_epoch, self.step, self.minibatch_of_step, self.stepped = (
            progress
        )

    def begin_epoch(self, epoch: int) -> None:
        """An epoch begins, and with it a step, unless gradients are still being accumulated for one."""
        self.epoch, self.minibatch = epoch, -1
        if self.stepped:
            self.step, self.minibatch_of_step, self.stepped = self.step + 1, -1, False

    def begin_minibatch(self, epoch: int, minibatch: int, minibatches_per_epoch: int) -> None:
        """A mini-batch begins: the first of a step, if the optimizer has stepped since the last one began."""
        self.epoch, self.minibatch, self.minibatches_per_epoch = epoch, minibatch, minibatches_per_epoch
        if self.stepped:
            self.step, self.minibatch_of_step, self.stepped = self.step + 1, 0, False
        else:
            self.minibatch_of_step += 1

    def tell(self, epoch: int, minibatch: int, minibatches_per_epoch: int) -> None:
        """Later in a mini-batch."""
        self.epoch, self.minibatch, self.minibatches_per_epoch = epoch, minibatch, minibatches_per_epoch

    def end_epoch(self, epoch: int) -> None:
        """An epoch has ended."""
        self.epoch, self.minibatch = epoch, -1


@dataclass(frozen=True, init=False, repr=False)
class Window:
    """When a policy acts: in the epochs `range(starting_epoch, ending_epoch, frequency)`, or in the ones listed.

    >>> list(Window(0, 7, 2).active), list(Window(epochs=[3, 5]).active)
    ([0, 2, 4, 6], [3, 5])

    Attributes:
        unit: what it counts in, and the name of that in `Progress`.
        begin_hook: the hook with which one of these begins.
        end_hook: the hook with which one of these ends.

    Raises:
        ValueError: no epoch is active, or epochs are negative or do not ascend.
    """

    unit: ClassVar[str] = "epoch"
    begin_hook: ClassVar[str] = "on_epoch_begin"
    end_hook: ClassVar[str] = "on_epoch_end"

    _start: int
    _end: int  # itself never active
    _frequency: int
    _listed: tuple[int, ...] | None

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
        # A frozen dataclass refuses plain assignments, also those of its own constructor.
        object.__setattr__(self, "_start", starting_epoch)
        object.__setattr__(self, "_end", ending_epoch)
        object.__setattr__(self, "_frequency", frequency)
        object.__setattr__(self, "_listed", None if epochs is None else tuple(epochs))

    def __repr__(self) -> str:
        return f"Window({', '.join(f'{key}={value}' for key, value in self.to_dict().items())})"

    def to_dict(self) -> dict[str, Any]:
        """The window as the keys of a policy: also the constructor's arguments.

        >>> Window(0, 7, 2).to_dict()
        {'starting_epoch': 0, 'ending_epoch': 7, 'frequency': 2}
        """
        if self._listed is not None:
            return {"epochs": list(self._listed)}
        return {"starting_epoch": self._start, "ending_epoch": self._end, "frequency": self._frequency}

    @property
    def active(self) -> Sequence[int]:
        """The active epochs, ascending."""
        return range(self._start, self._end, self._frequency) if self._listed is None else self._listed

    @property
    def _last(self) -> int:
        return self.active[-1]

    # All comparisons ask this: a window that counts in something else than epochs replaces it.
    def _now(self, progress: Progress) -> int:
        return progress.epoch

    # Where does a moment lie?

    def is_active(self, progress: Progress) -> bool:
        """Whether the policy acts now."""
        return self._now(progress) in self.active

    def is_open(self, progress: Progress) -> bool:
        """Whether it is the first active epoch, the last, or any between them."""
        # Not up to `_end`: with a frequency the last active epoch may lie well before that.
        return self._start <= self._now(progress) <= self._last

    def is_past(self, progress: Progress) -> bool:
        """Whether the last active epoch lies behind."""
        return self._now(progress) > self._last

    def is_last(self, progress: Progress) -> bool:
        """Whether it is the last active epoch."""
        return self._now(progress) == self._last

    def is_last_minibatch(self, progress: Progress) -> bool:
        """Whether it is the last mini-batch of the last active epoch."""
        return self.is_last(progress) and progress.is_last_minibatch

    def begins(self, progress: Progress) -> bool:
        """Whether an active epoch begins now (asked in `begin_hook` or within an epoch)."""
        return self.is_active(progress) and progress.minibatch < 0

    def ends(self, progress: Progress) -> bool:
        """Whether the last active epoch has ended now (asked in `end_hook` or within an epoch)."""
        return self.is_last(progress) and progress.minibatch < 0

    def prepares(self, progress: Progress) -> bool:
        """Whether what happens now may count when something is chosen: from the epoch before the first active one on.

        >>> [epoch for epoch in range(9) if Window(3, 6).prepares(Progress(epoch))]
        [2, 3, 4, 5]
        """
        return self._start - 1 <= self._now(progress) <= self._last

    # How much time has passed?

    def time(self, progress: Progress) -> int:
        """Epochs of the run that are over now that one begins: what learning rates are a function of."""
        return self._now(progress)

    def time_after(self, progress: Progress) -> int:
        """Epochs of the run that are over now that one ends."""
        return self._now(progress) + 1

    def elapsed(self, progress: Progress) -> int:
        """Epochs from the first active one to now: 0 in it."""
        return self._now(progress) - self._start

    def fraction(self, progress: Progress) -> float:
        """How far the window has come: 0 in the first active epoch, 1 in the last (and where there is only one).

        >>> [Window(2, 9, 3).fraction(Progress(epoch)) for epoch in (2, 5, 8)]
        [0.0, 0.5, 1.0]
        """
        span = self._last - self._start
        return self.elapsed(progress) / span if span else 1.0

    def minibatches_elapsed(self, progress: Progress) -> int:
        """Mini-batches from the first of the first active epoch to now: 0 in it."""
        return progress.minibatch_of_run - self._start * progress.minibatches_per_epoch

    def minibatches(self, progress: Progress) -> int:
        """How many mini-batches it is open for; 0 while unknown."""
        return (self._last - self._start + 1) * progress.minibatches_per_epoch

    # What is known of it beforehand?

    @property
    def length(self) -> int:
        """Epochs from the first active one to its end; every `frequency`-th of them is active.

        >>> Window(2, 9, 3).length, Window(epochs=[3, 5]).length
        (7, 3)
        """
        return self._end - self._start

    @property
    def acts_once(self) -> bool:
        """Whether there is but one active epoch."""
        return len(self.active) == 1

    @property
    def opens_at_start(self) -> bool:
        """Whether the very first epoch of training is active."""
        return self._start == 0

    @property
    def opening(self) -> Progress:
        """The moment at which it opens."""
        return Progress(self._start)

    @property
    def closing(self) -> Progress:
        """The moment at which the last active epoch begins."""
        return Progress(self._last)

    @property
    def epochs_to_end(self) -> int | None:
        """The epochs that a run must have for the window to end within it; None if that can't be told."""
        return self._end

    @property
    def epochs_to_act(self) -> int | None:
        """The epochs that a run must have for the policy to act once; None if that can't be told."""
        return self._start + 1

    def missed_by(self, epochs: int) -> str:
        """Why a run of this many epochs never sees it, in words; empty if it does, or if that can't be told.

        >>> Window(3, 9).missed_by(3), Window(3, 9).missed_by(4)
        ('its first epoch is 3, and a run of 3 ends with 2', '')
        """
        missed = self._start >= epochs
        return f"its first epoch is {self._start}, and a run of {epochs} ends with {epochs - 1}" if missed else ""

    def cut_off_by(self, epochs: int) -> Progress | None:
        """The last active epoch that a run of this many epochs comes to; None if that is the window's own last.

        It is None too where the run never sees the window, or where that can't be told.

        >>> Window(0, 9, 2).cut_off_by(4), Window(0, 9, 2).cut_off_by(9)
        (Progress(epoch=2, minibatch=-1, minibatches_per_epoch=0, step=0, minibatch_of_step=-1, stepped=False), None)
        """
        if self.unit != "epoch" or self._last < epochs or self._start >= epochs:
            return None
        return Progress(max(epoch for epoch in self.active if epoch < epochs))

    def over_before(self, epochs: int) -> str:
        """Why it is over before a run of this many epochs is, in words; empty if it is not, or if that can't be told.

        >>> Window(0, 4).over_before(6), Window(0, 4).over_before(4)
        ('its last epoch is 3, and a run of 6 ends with 5', '')
        """
        over = self.unit == "epoch" and self._last < epochs - 1
        return f"its last epoch is {self._last}, and a run of {epochs} ends with {epochs - 1}" if over else ""

    def time_within(self, epochs: int) -> int:
        """The `time` that it comes to, at most, in a run of this many epochs."""
        return min(self._last + 1, epochs)

    def label(self, elapsed: int = 0) -> str:
        """What a moment of it is called in messages, by the epochs that have elapsed.

        >>> Window(3, 9).label(), Window(3, 9).label(2)
        ('epoch 3', 'epoch 5')
        """
        return f"{self.unit} {self._start + elapsed}"

    def overlap(self, other: Window) -> str | None:
        """The first moment at which both windows are active, in words; None where there is none.

        >>> Window(0, 10, 2).overlap(Window(1, 10, 3)), Window(0, 3).overlap(Window(3, 6))
        ('epoch 4', None)
        """
        common = _first_common(self.active, other.active)
        return None if common is None else f"{self.unit} {common}"

    # Other windows

    def without_gaps(self) -> Window:
        """Active whenever this one is open."""
        return Window(self._start, self._last + 1)

    def scaled(self, factor: float) -> Window:
        """The window in a run that is `factor` times as long: every number of epochs times that, rounded down.

        A window keeps at least one active epoch, and windows that follow each other still do.

        >>> Window(4, 16, 2).scaled(0.5)
        Window(starting_epoch=2, ending_epoch=8, frequency=1)
        """
        if self._listed is not None:
            # A set, since several epochs may become one.
            return Window(epochs=sorted({math.floor(epoch * factor) for epoch in self._listed}))
        start, frequency = math.floor(self._start * factor), max(math.floor(self._frequency * factor), 1)
        return Window(start, max(math.floor(self._end * factor), start + 1), frequency)


def _first_common(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first number that two ascending sequences share, without counting through ranges."""
    if not (isinstance(one, range) and isinstance(other, range)):
        listed, rest = (one, other) if not isinstance(one, range) else (other, one)
        return next((number for number in listed if number in rest), None)
    # Chinese remainder theorem: what is one.start modulo one.step and other.start modulo other.step.
    step = math.gcd(one.step, other.step)
    if (other.start - one.start) % step:
        return None
    # `pow(…, -1, m)` is the inverse modulo m: there is one, since the common divisor has been taken out.
    turns = (other.start - one.start) // step * pow(one.step // step, -1, other.step // step)
    number = one.start + one.step * (turns % (other.step // step))
    both = math.lcm(one.step, other.step)
    # Up to where both have begun, in whole common steps: -(a // b) is -a / b rounded up.
    number += max(0, -((number - max(one.start, other.start)) // both)) * both
    return number if number in one and number in other else None
