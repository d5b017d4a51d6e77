"""Learning rates that a schedule has set, and whether anybody else moves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from prunekit.components.origin import Origin
from prunekit.engine.rates.schedule import Groups, key_of
from prunekit.model.optimizer import groups_of
from prunekit.progress import Clock
from prunekit.trace import Trace


class Rates:
    """Remembers the rates that the schedule has set while a window of an LR scheduler is open.

    A rate that something else moves is a warning and no error: it may be meant (a rate that is turned down by hand in
    the middle of a run), the schedule takes it back when it sets the next one, and a run of days is not to end over it.

    Attributes:
        watching: whether rates are looked at; an attribute, not a call, since each event asks.
    """

    def __init__(self, trace: Trace) -> None:
        self.watching = False
        self._trace = trace
        self._origin: Origin | None = None
        self._set: list[_Rate] = []
        self._told: set[tuple[Any, ...]] = set()

    def watch(self, watching: bool) -> None:
        """From now on rates are looked at, or no longer."""
        self.watching = watching
        if not watching:
            self.forget()

    def forget(self) -> None:
        """The rates are no longer those that were set: a state is loaded."""
        self._set = []

    def note(self, origin: Origin, groups: Groups) -> None:
        """Rates have just been set; they are read back, since an optimizer may round them."""
        if self.watching:
            self._origin, self._set = origin, [_Rate.of(group) for group in groups]

    def check(self, optimizers: Sequence[Optimizer], clock: Clock) -> None:
        """Warn of rates that are not those which were set: once for each policy and way in which they move."""
        groups = groups_of(optimizers)
        # Groups that were added are nobody's yet; in place of one that was taken away stands one of other parameters.
        moved = [i for i, (rate, group) in enumerate(zip(self._set, groups, strict=False)) if rate.is_moved(group)]
        if not moved:
            return
        # torch's schedulers leave this mark on the optimizer that they step with.
        stepped = any(hasattr(optimizer.step, "_wrapped_by_lr_sched") for optimizer in optimizers)
        by = "a torch LR scheduler" if stepped else "something else"
        progress = clock.progress
        way = (self._origin, by, progress.minibatch >= 0)
        if self._origin is not None and way not in self._told:
            self._told.add(way)
            before, after = [self._set[i].value for i in moved], [float(groups[i]["lr"]) for i in moved]
            details = {"by": by, "groups": moved, "set": before, "found": after}
            self._trace.warning("learning rate moved", **self._origin._asdict(), **progress.trace_keys(), **details)
        self._set = [_Rate.of(group) for group in groups]


@dataclass(frozen=True)
class _Rate:
    """The rate of a group as it was read back."""

    key: int | None
    held: Any
    version: int
    value: float

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> _Rate:
        held = group.get("lr")
        return cls(key_of(group), held, _version(held), float("nan") if held is None else float(held))

    def is_moved(self, group: Mapping[str, Any]) -> bool:
        """Whether the group has another rate now; a tensor that nobody has written to is not read, nor waited for."""
        held = group.get("lr")
        if held is self.held and _version(held) == self.version:
            return False
        return held is not None and float(held) != self.value and key_of(group) == self.key


def _version(held: Any) -> int:
    return held._version if isinstance(held, Tensor) else 0
