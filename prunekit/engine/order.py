"""The order of a loop's events: what can't be meant is refused, what is probably not meant is said, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.progress import Progress


class Order:
    """What the loop has told of so far. Asked in each event, so it compares integers and does no more.

    A loop may leave a mini-batch in the middle, and a resumed one begins within an epoch; neither is out of order.

    Args:
        warn: where warnings go, each event's once.

    Attributes:
        epoch: the one that has begun and not ended; -1 outside epochs.
        minibatch: the last that has begun in it; -1 before the first.
        expected: the epoch that is to begin next.
        closed: no event is to come any more.
    """

    def __init__(self, warn: Callable[..., None]) -> None:
        self._warn = warn
        self._said: set[str] = set()
        self.epoch = self.minibatch = -1
        self._number = self.expected = 0
        self.closed = False

    def restore(self, now: Progress, next_epoch: int) -> None:
        """A state is loaded: between two epochs, or within one whose beginning will not be told again."""
        within = now.minibatch >= 0
        self.epoch, self.minibatch = (now.epoch, now.minibatch) if within else (-1, -1)
        self._number, self.expected = now.minibatches_per_epoch, max(next_epoch, self.epoch + 1)

    def begin_epoch(self, epoch: int) -> range:
        """An epoch begins; the epochs that the loop has passed over."""
        if self.epoch >= 0 and epoch != self.epoch:
            self.say("epoch not ended", epoch=self.epoch, next=epoch)
        if epoch < self.expected:
            self.say("epoch begins again", epoch=epoch, expected=self.expected)
        skipped = range(self.expected, epoch)
        self.epoch, self.minibatch, self._number, self.expected = epoch, -1, 0, epoch + 1
        return skipped

    def begin_minibatch(self, epoch: int, minibatch: int, number: int) -> None:
        """A mini-batch begins.

        Raises:
            PrunekitError: its epoch has not begun.
        """
        if epoch != self.epoch:
            raise PrunekitError(f"mini-batch {minibatch} of epoch {epoch} begins{self._not_begun(epoch)}")
        if not self.minibatch < minibatch < number:
            self._say_number(minibatch, number)
        self.minibatch, self._number = minibatch, number

    def within_minibatch(self, epoch: int, minibatch: int) -> None:
        """Something happens in a mini-batch.

        Raises:
            PrunekitError: its epoch has not begun.
        """
        if epoch == self.epoch and minibatch == self.minibatch:
            return
        if epoch != self.epoch:
            raise PrunekitError(f"mini-batch {minibatch} of epoch {epoch} goes on{self._not_begun(epoch)}")
        self.say("mini-batch not begun", epoch=epoch, minibatch=minibatch, begun=self.minibatch)

    def end_epoch(self, epoch: int) -> None:
        """An epoch ends.

        Raises:
            PrunekitError: it has not begun.
        """
        if epoch != self.epoch:
            raise PrunekitError(f"epoch {epoch} ends{self._not_begun(epoch)}")
        if 0 <= self.minibatch < self._number - 1:
            seen = {"minibatches": self.minibatch + 1, "minibatches_per_epoch": self._number}
            self.say("fewer mini-batches than said", epoch=epoch, **seen)

    def end(self) -> None:
        """The epoch is over, or training is."""
        self.epoch = -1

    def missed_windows(self, policies: Sequence[str]) -> None:
        """The windows of these have closed in epochs that were passed over."""
        if policies:
            advice = "a run that goes on loads its scheduler's state_dict()"
            self.say("windows missed", epoch=self.epoch, policies=policies, advice=advice)

    def missed_metrics(self, lacking: Sequence[str]) -> None:
        """An epoch ends without what policies to come will need when theirs do."""
        if lacking:
            self.say("metrics missing", epoch=self.epoch, lacking=lacking)

    def missed_terms(self, policies: Sequence[str]) -> None:
        """An epoch of training ends, and nobody has gone backward from a loss with the terms of these."""
        if policies:
            advice = "call backward() on what scheduler.total_loss(loss) returns"
            self.say("loss terms not trained on", epoch=self.epoch, policies=policies, advice=advice)

    def close(self) -> None:
        """The scheduler is closed."""
        self.epoch, self.closed = -1, True

    def must_be_open(self) -> None:
        """Whether events may still come.

        Raises:
            PrunekitError: the scheduler is closed.
        """
        if self.closed:
            raise PrunekitError("the scheduler is closed; make a new CompressionScheduler to train on")

    def say(self, event: str, **values: Any) -> None:
        """Warn, if this has not been said yet."""
        if event not in self._said:
            self._said.add(event)
            self._warn(event, **values)

    def _say_number(self, minibatch: int, number: int) -> None:
        if minibatch >= number:
            self.say("more mini-batches than said", epoch=self.epoch, minibatch=minibatch, minibatches_per_epoch=number)
        if minibatch <= self.minibatch:
            self.say("mini-batch begins again", epoch=self.epoch, minibatch=minibatch, last=self.minibatch)

    def _not_begun(self, epoch: int) -> str:
        self.must_be_open()
        now = "no epoch is under way" if self.epoch < 0 else f"epoch {self.epoch} is under way"
        return f", and {now}; call on_epoch_begin({epoch}) first, or let `for epoch in scheduler.epochs(n)` do it"
