"""Time: where training stands, and the window in which a policy acts. Integers only, and nobody else computes with it.

A window has a unit of its own: the epoch, or the step of the optimizer. It is asked with a `Progress`, never with a
number, so that whoever asks need not know which unit it is: curves take `fraction`, learning rates `time`, the
scheduler `begin_hook` and `end_hook`.

Long on purpose: all arithmetic on epochs, mini-batches and steps stands here, so that no other module does any.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

StepsPerEpoch = int | Fraction
"""How many steps of the optimizer an epoch has, on average: some may have been skipped. 0 while unknown."""


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
    def label(self) -> str:
        """What this moment is called in messages.

        >>> Progress(2, 3, 10, 23).label
        'epoch 2, step 23'
        """
        return f"epoch {self.epoch}, step {self.step}"

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


BEFORE_TRAINING = Progress(-1)
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

    The same in steps of the optimizer: `range(starting_step, ending_step, frequency)`, or the ones listed. Below, "one"
    is an active epoch, or an active step: a step begins with its first mini-batch, and ends when it has been taken.

    >>> list(Window(0, 7, 2).active), list(Window(epochs=[3, 5]).active)
    ([0, 2, 4, 6], [3, 5])
    >>> Window(starting_step=500, ending_step=2500, frequency=1000).active, Window(steps=[7]).active
    (range(500, 2500, 1000), (7,))

    Attributes:
        unit: what it counts in, and the name of that in `Progress`: `"epoch"` or `"step"`.

    Raises:
        ValueError: nothing is active, numbers are negative or do not ascend, or some are epochs and others steps.
    """

    unit: str
    _start: int
    _end: int  # itself never active
    _frequency: int
    _listed: tuple[int, ...] | None

    def __init__(
        self,
        starting_epoch: int | None = None,
        ending_epoch: int | None = None,
        frequency: int = 1,
        *,
        epochs: Sequence[int] | None = None,
        starting_step: int | None = None,
        ending_step: int | None = None,
        steps: Sequence[int] | None = None,
    ) -> None:
        forms = {"epoch": (starting_epoch, ending_epoch, epochs), "step": (starting_step, ending_step, steps)}
        units = [unit for unit, values in forms.items() if any(value is not None for value in values)]
        if len(units) > 1:
            raise ValueError("a window is in epochs or in steps, not in both")
        unit = units[0] if units else "epoch"
        start, end, listed = forms[unit]
        if listed is not None:
            if not listed or listed[0] < 0 or any(a >= b for a, b in pairwise(listed)):
                raise ValueError(f"{unit}s must be ascending, not negative and at least one, got {list(listed)}")
            start, end, frequency = listed[0], listed[-1] + 1, 1
        start, end = start or 0, end or 0
        if not 0 <= start < end:
            raise ValueError(f"0 <= starting_{unit} < ending_{unit} must hold, got {start} and {end}")
        if frequency < 1:
            raise ValueError(f"frequency must be at least 1, got {frequency}")
        # A frozen dataclass refuses plain assignments, also those of its own constructor.
        object.__setattr__(self, "unit", unit)
        object.__setattr__(self, "_start", start)
        object.__setattr__(self, "_end", end)
        object.__setattr__(self, "_frequency", frequency)
        object.__setattr__(self, "_listed", None if listed is None else tuple(listed))

    def __repr__(self) -> str:
        return f"Window({', '.join(f'{key}={value}' for key, value in self.to_dict().items())})"

    def to_dict(self) -> dict[str, Any]:
        """The window as the keys of a policy: also the constructor's arguments.

        >>> Window(0, 7, 2).to_dict()
        {'starting_epoch': 0, 'ending_epoch': 7, 'frequency': 2}
        """
        if self._listed is not None:
            return {f"{self.unit}s": list(self._listed)}
        return {f"starting_{self.unit}": self._start, f"ending_{self.unit}": self._end, "frequency": self._frequency}

    @property
    def active(self) -> Sequence[int]:
        """The active epochs or steps, ascending."""
        return range(self._start, self._end, self._frequency) if self._listed is None else self._listed

    @property
    def begin_hook(self) -> str:
        """The hook with which one begins."""
        return "on_minibatch_begin" if self.in_steps else "on_epoch_begin"

    @property
    def end_hook(self) -> str:
        """The hook with which one ends."""
        return "on_minibatch_end" if self.in_steps else "on_epoch_end"

    @property
    def in_steps(self) -> bool:
        """Whether it counts steps: it opens and closes within epochs."""
        return self.unit == "step"

    @property
    def _last(self) -> int:
        return self.active[-1]

    # Where does a moment lie? Between two steps it lies in none: the former is `_now`, and the one to come `_coming`.

    def _now(self, progress: Progress) -> int:
        return progress.step - (progress.minibatch_of_step < 0) if self.in_steps else progress.epoch

    def _coming(self, progress: Progress) -> int:
        return progress.step if self.in_steps else progress.epoch

    def is_active(self, progress: Progress) -> bool:
        """Whether the policy acts now."""
        now = self._now(progress)
        return now == self._coming(progress) and now in self.active

    def is_open(self, progress: Progress) -> bool:
        """Whether it is the first one, the last, or any moment between them."""
        # Not up to `_end`: with a frequency the last active epoch may lie well before that.
        return self._start <= self._now(progress) and self._coming(progress) <= self._last

    def is_ahead(self, progress: Progress) -> bool:
        """Whether the first one has not begun yet."""
        return self._now(progress) < self._start

    def is_past(self, progress: Progress) -> bool:
        """Whether the last active epoch lies behind."""
        return self._now(progress) > self._last

    def is_last(self, progress: Progress) -> bool:
        """Whether it is the last one."""
        return self._now(progress) == self._last == self._coming(progress)

    def is_last_minibatch(self, progress: Progress) -> bool:
        """Whether it is the last mini-batch of the last one: in steps, the one in which that has been taken."""
        return self.is_last(progress) and (progress.stepped if self.in_steps else progress.is_last_minibatch)

    def is_last_step(self, progress: Progress) -> bool:
        """Whether the optimizer is about to take its last step within (asked when gradients are known)."""
        return self.is_last(progress) and (self.in_steps or progress.is_last_minibatch)

    def begins(self, progress: Progress) -> bool:
        """Whether one begins now (asked in `begin_hook` or within an epoch)."""
        within = progress.minibatch >= 0
        first = within and progress.minibatch_of_step == 0 and not progress.stepped if self.in_steps else not within
        return first and self.is_active(progress)

    def ends(self, progress: Progress) -> bool:
        """Whether the last one has ended now (asked in `end_hook` or within an epoch)."""
        return self.is_last(progress) and (progress.stepped if self.in_steps else progress.minibatch < 0)

    def prepares(self, progress: Progress) -> bool:
        """Whether what happens now may count when something is chosen: from the epoch, or step, before the first on.

        >>> [epoch for epoch in range(9) if Window(3, 6).prepares(Progress(epoch))]
        [2, 3, 4, 5]
        """
        return self._start - 1 <= self._now(progress) and self._coming(progress) <= self._last

    def unchanged_until(self, progress: Progress) -> int:
        """The epoch, or step, up to which nothing changes in what was asked above, if it does not change between two.

        >>> [Window(3, 9, 2).unchanged_until(Progress(epoch)) for epoch in (0, 2, 3, 4, 7)]
        [2, 3, 4, 5, 8]
        """
        now = self._coming(progress)
        ends = [self._start - 1, self._start, self._last, self._last + 1]
        if self._start <= now < self._last and len(self.active) < self.length:  # gaps come and go in every other one
            ends.append(now + 1 if now in self.active else self.active[bisect_right(self.active, now)])
        return min((end for end in ends if end > now), default=sys.maxsize)

    # How much time has passed?

    def time(self, progress: Progress) -> int:
        """Epochs, or steps, of the run that are over now that one begins: what learning rates are a function of."""
        return self._coming(progress)

    def time_after(self, progress: Progress) -> int:
        """Epochs, or steps, of the run that are over now that one ends: not more than when it began if gradients are
        still being accumulated.
        """
        return progress.step + progress.stepped if self.in_steps else progress.next_epoch

    def elapsed(self, progress: Progress) -> int:
        """Epochs, or steps, from the first one to now: 0 in it."""
        return self._now(progress) - self._start

    def fraction(self, progress: Progress) -> float:
        """How far the window has come: 0 in the first one, 1 in the last (and where there is only one).

        >>> [Window(2, 9, 3).fraction(Progress(epoch)) for epoch in (2, 5, 8)]
        [0.0, 0.5, 1.0]
        """
        span = self._last - self._start
        return self.elapsed(progress) / span if span else 1.0

    def minibatches_elapsed(self, progress: Progress) -> int:
        """Mini-batches from the first of the first active epoch to now, or steps from the first one: 0 in it."""
        if self.in_steps:
            return self.elapsed(progress)
        return progress.minibatch_of_run - self._start * progress.minibatches_per_epoch

    def minibatches(self, progress: Progress) -> int:
        """How many mini-batches it is open for, or steps; 0 while unknown."""
        return (self._last - self._start + 1) * (1 if self.in_steps else progress.minibatches_per_epoch)

    # What is known of it beforehand? Of steps only as much as is known of how many an epoch has.

    @property
    def length(self) -> int:
        """Epochs, or steps, from the first one to its end; every `frequency`-th of them is active.

        >>> Window(2, 9, 3).length, Window(epochs=[3, 5]).length
        (7, 3)
        """
        return self._end - self._start

    @property
    def acts_once(self) -> bool:
        """Whether there is but one."""
        return len(self.active) == 1

    @property
    def opens_at_start(self) -> bool:
        """Whether the very first epoch, or step, of training is active."""
        return self._start == 0

    @property
    def opening(self) -> Progress:
        """The moment at which it opens; of a window in steps nobody knows the epoch."""
        return self._beginning(self._start)

    @property
    def closing(self) -> Progress:
        """The moment at which the last one begins."""
        return self._beginning(self._last)

    def _beginning(self, number: int) -> Progress:
        return Progress(0, 0, 0, number, 0) if self.in_steps else Progress(number)

    def epochs_to_end(self, steps_per_epoch: StepsPerEpoch = 0) -> int | None:
        """The epochs that a run must have for the window to end within it; None if that can't be told.

        >>> Window(3, 9).epochs_to_end(), Window(steps=[25]).epochs_to_end(), Window(steps=[25]).epochs_to_end(10)
        (9, None, 3)
        """
        return self._epochs(self._end, steps_per_epoch)

    def epochs_to_act(self, steps_per_epoch: StepsPerEpoch = 0) -> int | None:
        """The epochs that a run must have for the policy to act once; None if that can't be told."""
        return self._epochs(self._start + 1, steps_per_epoch)

    def _epochs(self, number: int, steps_per_epoch: StepsPerEpoch) -> int | None:
        if not self.in_steps:
            return number
        return -(-number // steps_per_epoch) if steps_per_epoch else None  # rounded up

    def missed_by(self, epochs: int, steps_per_epoch: StepsPerEpoch = 0) -> str:
        """Why a run of this many epochs never sees it, in words; empty if it does, or if that can't be told.

        >>> Window(3, 9).missed_by(3), Window(3, 9).missed_by(4)
        ('its first epoch is 3, and a run of 3 ends with 2', '')
        >>> Window(steps=[25]).missed_by(2, 10)
        'its first step is 25, and a run of 20 ends with 19'
        """
        length = self._run(epochs, steps_per_epoch)
        if length is None or self._start < length:
            return ""
        return f"its first {self.unit} is {self._start}, and a run of {length} ends with {length - 1}"

    def cut_off_by(self, epochs: int, steps_per_epoch: StepsPerEpoch = 0) -> Progress | None:
        """The last active moment that a run of this many epochs comes to; None if that is the window's own last.

        It is None too where the run never sees the window, or where that can't be told.

        >>> Window(0, 9, 2).cut_off_by(4), Window(0, 9, 2).cut_off_by(9)
        (Progress(epoch=2, minibatch=-1, minibatches_per_epoch=0, step=0, minibatch_of_step=-1, stepped=False), None)
        """
        length = self._run(epochs, steps_per_epoch)
        if length is None or not self._start < length <= self._last:
            return None
        return self._beginning(self.active[bisect_left(self.active, length) - 1])

    def over_before(self, epochs: int, steps_per_epoch: StepsPerEpoch = 0) -> str:
        """Why it is over before a run of this many epochs is, in words; empty if it is not, or if that can't be told.

        >>> Window(0, 4).over_before(6), Window(0, 4).over_before(4)
        ('its last epoch is 3, and a run of 6 ends with 5', '')
        """
        length = self._run(epochs, steps_per_epoch)
        if length is None or self._last >= length - 1:
            return ""
        return f"its last {self.unit} is {self._last}, and a run of {length} ends with {length - 1}"

    def time_within(self, epochs: int, steps_per_epoch: StepsPerEpoch = 0) -> int:
        """The `time` that it comes to, at most, in a run of this many epochs."""
        length = self._run(epochs, steps_per_epoch)
        return self._last + 1 if length is None else min(self._last + 1, length)

    def _run(self, epochs: int, steps_per_epoch: StepsPerEpoch) -> int | None:
        """The length of a run in its own unit; None if that can't be told."""
        if not self.in_steps:
            return epochs
        return int(epochs * steps_per_epoch) if steps_per_epoch else None

    def label(self, elapsed: int = 0) -> str:
        """What a moment of it is called in messages, by the epochs or steps that have elapsed.

        >>> Window(3, 9).label(), Window(3, 9).label(2), Window(steps=[7]).label()
        ('epoch 3', 'epoch 5', 'step 7')
        """
        return f"{self.unit} {self._start + elapsed}"

    def overlap(self, other: Window, steps_per_epoch: StepsPerEpoch = 0) -> str | None:
        """The first moment at which both windows are active, in words; None where there is none.

        >>> Window(0, 10, 2).overlap(Window(1, 10, 3)), Window(0, 3).overlap(Window(3, 6))
        ('epoch 4', None)
        >>> Window(2, 4).overlap(Window(starting_step=0, ending_step=25), steps_per_epoch=10)
        'epoch 2, step 20'

        Raises:
            ValueError: one counts epochs and the other steps (`unit`), and how many an epoch has is not known.
        """
        if self.unit == other.unit:
            common = _first_common(self.active, other.active)
            return None if common is None else f"{self.unit} {common}"
        if not steps_per_epoch:
            raise ValueError(f"whether {self} and {other} overlap depends on how many steps an epoch has")
        epochs, steps = (other.active, self.active) if self.in_steps else (self.active, other.active)
        for epoch in epochs:
            place = bisect_left(steps, epoch * steps_per_epoch)
            if place == len(steps):
                return None
            if steps[place] < (epoch + 1) * steps_per_epoch:
                return Progress(epoch, step=steps[place]).label
        return None

    # Other windows

    def follows(self, other: Window) -> bool:
        """Whether it opens where the other one ends.

        >>> Window(5, 9).follows(Window(0, 5)), Window(5, 9).follows(Window(0, 4)), Window(5, 9).follows(Window(4, 9))
        (True, False, False)
        """
        return self.unit == other.unit and other._last < self._start <= other._end

    def without_gaps(self) -> Window:
        """Active whenever this one is open."""
        return self._ranged(self._start, self._last + 1)

    def scaled(self, factor: float) -> Window:
        """The window in a run that is `factor` times as long: every number in it times that, rounded down.

        A window keeps at least one active epoch, or step, and windows that follow each other still do.

        >>> Window(4, 16, 2).scaled(0.5)
        Window(starting_epoch=2, ending_epoch=8, frequency=1)
        """
        if self._listed is not None:
            # A set, since several epochs may become one.
            scaled: dict[str, Any] = {f"{self.unit}s": sorted({math.floor(number * factor) for number in self._listed})}
            return Window(**scaled)
        start, frequency = math.floor(self._start * factor), max(math.floor(self._frequency * factor), 1)
        return self._ranged(start, max(math.floor(self._end * factor), start + 1), frequency)

    def _ranged(self, start: int, end: int, frequency: int = 1) -> Window:
        keys: dict[str, Any] = {f"starting_{self.unit}": start, f"ending_{self.unit}": end}
        return Window(**keys, frequency=frequency)


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
