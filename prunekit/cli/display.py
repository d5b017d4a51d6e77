"""How a run is watched: a bar on a terminal, one line an epoch everywhere else."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from prunekit.cli.console import new_console, print_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prunekit.training.results import EpochResult, MinibatchResult

SECONDS_BETWEEN_LOOKS = 0.1
"""Reading a loss waits for the device: the bar does not look at every mini-batch's."""


class Display:
    """Shows epochs and mini-batches while a run lasts.

    Args:
        epochs: the length of the run.
        label: what stands before each line, to tell two runs apart.
    """

    def __init__(self, epochs: int, label: str = "") -> None:
        self.label, self.last = label, epochs - 1
        self.console = new_console()
        self.live = sys.stdout.isatty() and not self.console.is_dumb_terminal
        columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn())
        words = (TextColumn("{task.description}"), TextColumn("{task.fields[numbers]}"))
        self._bar = Progress(words[0], *columns, words[1], console=self.console, transient=True)
        self._task = self._bar.add_task(label, total=None, numbers="")
        self._looked, self._epoch = 0.0, -1
        self._accuracy: float | None = None

    def __enter__(self) -> Display:
        if self.live:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away."""
        if self.live:
            self._bar.stop()

    def on_epoch(self, result: EpochResult) -> None:
        """An epoch has ended: its line."""
        self._accuracy = result.accuracy
        accuracy = "" if result.accuracy is None else f"  accuracy {result.accuracy:.2%}"
        metrics = "".join(f"  {name} {value:.4g}" for name, value in result.metrics.items())
        self._print(
            f"{self.label}epoch {result.epoch}/{self.last}  train loss {result.train_loss:.4f}"
            f"{_parts(result.train_parts)}  loss {result.loss:.4f}{_parts(result.parts)}{accuracy}{metrics}"
            f"  {_rate(result.learning_rate)}  sparsity {result.sparsity:.3f}  {result.seconds:.1f} s"
        )

    def on_minibatch(self, result: MinibatchResult) -> None:
        """A mini-batch has ended: the bar moves now and then."""
        now, last = time.monotonic(), result.minibatch + 1 == result.minibatches_per_epoch
        if now - self._looked < SECONDS_BETWEEN_LOOKS and not last:
            return
        self._looked = now
        if result.epoch != self._epoch:
            self._epoch = result.epoch
            self._bar.reset(self._task, total=result.minibatches_per_epoch)
        accuracy = "" if self._accuracy is None else f"  accuracy {self._accuracy:.2%}"
        numbers = f"loss {result.loss:.4f}{accuracy}  {_rate(result.learning_rate)}  sparsity {result.sparsity:.3f}"
        description = f"{self.label}epoch {result.epoch}/{self.last}"
        self._bar.update(self._task, description=description, completed=result.minibatch + 1, numbers=numbers)

    def on_warning(self, text: str) -> None:
        """Something that is allowed and probably not meant."""
        if self.live:
            self._print(f"warning: {text}")
        else:
            print_error(f"warning: {text}")

    def _print(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)


def _rate(rate: float | None) -> str:
    return "lr of its own" if rate is None else f"lr {rate:.4g}"


def _parts(parts: Mapping[str, float]) -> str:
    """What a loss is the sum of."""
    return f" ({', '.join(f'{name} {value:.4f}' for name, value in parts.items())})" if parts else ""
