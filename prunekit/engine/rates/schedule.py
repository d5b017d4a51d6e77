"""Any torch LR scheduler as a function of time: what it holds after so many steps of its own.

torch's schedulers change their optimizer step by step, most of them from the value before (recursively), and only their
deprecated `step(epoch)` jumps, to other bits. Here the scheduler walks on a shadow of the optimizer, one step for each
unit of time, as a loop of torch's would call it: the values are the same to the last bit. A walk only goes forward, so
that a whole run costs as many steps as it has units.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from prunekit.errors import ArgumentError, PrunekitError, shortened

Groups = Sequence[Mapping[str, Any]]
"""The parameter groups of an optimizer, or of several one after the other."""


_WALKED = 20_000
"""So many units of time a rehearsal walks through before it leaps to the end: a million would take seconds."""


class LearningRateSchedule:
    """A torch LR scheduler, asked for the values of parameter groups at a time.

    The base of each group is what it holds when the schedule is loaded, with `initial_lr`, where it has one, as its
    learning rate: that is how torch notes the rate that a run began with.

    Args:
        cls: an `LRScheduler` class, or one like `ReduceLROnPlateau` whose `step` takes `metrics`.
        args: its constructor's arguments, without the optimizer.
        groups: give the base values; None while a schedule is only being checked.

    Attributes:
        takes_metrics: whether it looks at metrics, not at the time.
    """

    def __init__(self, cls: type, args: Mapping[str, Any], groups: Groups | None) -> None:
        self._cls, self._args = cls, dict(args)
        # With momentum, because some schedulers cycle it and refuse an optimizer that has none.
        groups = [{"params": [], "lr": 0.1, "momentum": 0.9}] if groups is None else groups
        self._base, self._keys = [_base(group) for group in groups], [key_of(group) for group in groups]
        self.takes_metrics = "metrics" in inspect.signature(cls.step).parameters  # type: ignore[attr-defined]
        self._walks: dict[str, _Walk] = {}
        self._rehearsed = 0
        # Of one that does not look at metrics only to see whether its arguments are right.
        self._plateau = self._begin()

    def follow(self, groups: Groups) -> None:
        """Groups were added or taken away: each of the others keeps its base, and a new one gives its own."""
        if len(groups) == len(self._base):
            return
        pairs, grown = zip(self._keys, self._base, strict=False), len(groups) > len(self._base)
        known = {key: base for key, base in pairs if key is not None}
        # Parameters may have been replaced: then a group is known by its place, since new ones come last.
        places = [self._base[i] if grown and i < len(self._base) else _base(group) for i, group in enumerate(groups)]
        self._keys = [key_of(group) for group in groups]
        self._base = [
            place if key is None else known.get(key, place) for key, place in zip(self._keys, places, strict=True)
        ]
        self._restart(self._memory)

    def rebase(self, groups: Groups, former: Sequence[int | None]) -> None:
        """Other optimizers than before: `former` is the place that each group had; a new one gives its own base."""
        self._base = [
            _base(group) if place is None else self._base[place] for group, place in zip(groups, former, strict=True)
        ]
        self._keys = [key_of(group) for group in groups]
        self._restart(self._memory)

    def at(self, time: int, walk: str = "", *, takes_over: bool = False) -> list[dict[str, Any]]:
        """The values of each group at a time: `lr`, and what else the scheduler cycles (momentum, betas).

        Args:
            time: how many steps of the scheduler come before it.
            walk: who asks. Each has a walk of its own, which begins anew when it is asked for an earlier time.
            takes_over: the first values are those that torch's `SequentialLR` sets at a milestone.
        """
        known = self._walks.get(walk)
        if known is None or time < known.time:
            known = self._walks[walk] = self._begin(takes_over=takes_over)
        return known.to(time)

    def after(self, metrics: Mapping[str, float] | None, groups: Groups) -> list[dict[str, Any]]:
        """The values of each group after an epoch with these metrics, for a scheduler that looks at them.

        Raises:
            PrunekitError: `lacks(metrics)`.
        """
        if metrics is None or self.lacks(metrics):
            raise PrunekitError(self.lacks(metrics))
        return self._plateau.after(float(metrics[self._mode]), groups)

    def lacks(self, metrics: Mapping[str, float] | None) -> str:
        """What is missing among the metrics of an epoch, in words; empty if nothing is."""
        if not self.takes_metrics:
            return ""
        needed = f"{self._cls.__name__} needs on_epoch_end(metrics={{{self._mode!r}: …}})"
        if metrics is None or self._mode not in metrics:
            given = "none" if not metrics else f"only {', '.join(map(repr, metrics))}"
            return f"{needed}, got {given}"
        value = metrics[self._mode]
        is_number = isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)
        return "" if is_number else f"{needed}, a number, got {shortened(value)}"

    def state_dict(self) -> dict[str, Any]:
        """The base values; of a scheduler that looks at metrics, all that it remembers."""
        state: dict[str, Any] = {"base": [dict(group) for group in self._base]}
        return {**state, "scheduler": self._memory} if self.takes_metrics else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._base = [dict(group) for group in state["base"]]
        self._restart(state.get("scheduler", {}))

    def rehearse(self, time: int) -> None:
        """Walk through all times up to this one, to see whether the scheduler lasts. Nothing here changes.

        Raises:
            Exception: what the scheduler raised because its own plan is over.
        """
        if not self.takes_metrics and time > self._rehearsed:
            self._begin().rehearse(min(time, _WALKED))
            if time > _WALKED:
                self._leap(time)
            self._rehearsed = time

    def _leap(self, time: int) -> None:
        """Look at a time too far ahead to be walked to, as far as the scheduler bears that."""
        try:
            self._begin().leap(time)
        except Exception:
            try:
                self._begin().leap(2)
            except Exception:  # it bears no leaps at all
                self._begin().rehearse(time)
            else:
                raise

    def __getstate__(self) -> dict[str, Any]:
        # torch's schedulers hold a function within a function, which can be neither copied nor pickled.
        return {**vars(self), "_walks": {}, "_plateau": self._memory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._restart(state["_plateau"])

    @property
    def _mode(self) -> str:
        mode: str = self._plateau.mode
        return mode

    @property
    def _memory(self) -> dict[str, Any]:
        return self._plateau.memory() if self.takes_metrics else {}

    def _restart(self, memory: Mapping[str, Any]) -> None:
        self._walks, self._plateau = {}, self._begin()
        if self.takes_metrics:
            self._plateau.remember(memory)

    def _begin(self, *, takes_over: bool = False) -> _Walk:
        return _Walk(self._cls, self._args, self._base, takes_over=takes_over)


def jump_between(before: Groups, after: Groups) -> tuple[float, float] | None:
    """The rates before and after of the first group whose rate becomes more than three times as large, or small."""
    for one, other in zip(before, after, strict=False):
        old, new = float(one["lr"] or 0.0), float(other["lr"])
        if max(abs(old), abs(new)) > 3 * min(abs(old), abs(new)):
            return old, new
    return None


def key_of(group: Mapping[str, Any]) -> int | None:
    """By what a group is known again: also when the optimizer has loaded a state, it has the same parameters."""
    return id(group["params"][0]) if group["params"] else None


class _Walk:
    """One instance of the scheduler, and how far it has come."""

    def __init__(self, cls: type, args: Mapping[str, Any], base: Groups, *, takes_over: bool) -> None:
        self._base, self._shadow, self.time = base, _Shadow(base), 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self._scheduler: Any = cls(self._shadow, **args)
        if getattr(self._scheduler, "cycle_momentum", False) and len({"betas" in group for group in base}) > 1:
            # It looks at one optimizer, and cycles either the momentum of all groups or the first beta of all.
            what = "must be false: of these optimizers some have a momentum, and others betas"
            raise ArgumentError("cycle_momentum", message=what)
        self._scheduler_step: Callable[[], None] = self._scheduler.step
        self.mode = getattr(self._scheduler, "mode", "min")
        if takes_over and hasattr(self._scheduler, "_get_closed_form_lr"):
            # At a milestone SequentialLR takes the closed form, whose rounding need not be that of the constructor.
            self._scheduler._update_lr(0)
        # What has ever differed from the base is the scheduler's to set, also when it comes back to the base. Its
        # constructor may have set something already.
        self._cycled = {"lr"}
        self._cycled |= self._changed()
        self._shadow.step()  # once: torch warns of a scheduler whose optimizer has never stepped

    def to(self, time: int) -> list[dict[str, Any]]:
        """Go on to a time that is not past, and say what the groups hold then."""
        while self.time < time:
            self._scheduler_step()
            self.time += 1
            self._cycled |= self._changed()
        return self._values()

    def rehearse(self, time: int) -> None:
        for _ in range(time):
            self._scheduler_step()

    def leap(self, time: int) -> None:
        """Come to a time without those before it: the values are wrong, but whether there are any can be seen."""
        self._scheduler.last_epoch = time - 1
        self._scheduler_step()

    def after(self, metric: float, groups: Groups) -> list[dict[str, Any]]:
        for shadow, group in zip(self._shadow.param_groups, groups, strict=True):
            # Such a scheduler multiplies the rate that is there, whoever has set it.
            shadow["lr"] = float(group["lr"])
        self._scheduler.step(metric)
        return self._values()

    def memory(self) -> dict[str, Any]:
        # `torch.load(weights_only=True)` would refuse the rest, which is the same in every instance. How many groups
        # there are is not its to remember.
        return {key: v for key, v in self._scheduler.state_dict().items() if _is_plain(v) and key not in _OF_GROUPS}

    def remember(self, memory: Mapping[str, Any]) -> None:
        self._scheduler.load_state_dict({**self._scheduler.state_dict(), **memory})

    def _changed(self) -> set[str]:
        pairs = zip(self._shadow.param_groups, self._base, strict=True)
        return {key for group, base in pairs for key in base.keys() - self._cycled if group[key] != base[key]}

    def _values(self) -> list[dict[str, Any]]:
        pairs = zip(self._shadow.param_groups, self._base, strict=True)
        # As numbers: a tensor would be the shadow's own, which it writes into.
        return [{key: _number(group[key]) for key in sorted(self._cycled & base.keys())} for group, base in pairs]


class _Shadow(Optimizer):
    """Parameter groups without the parameters."""

    def __init__(self, groups: Groups) -> None:
        copies = [{key: _copy(value) for key, value in group.items()} for group in groups]
        # torch's schedulers look into `defaults` to see whether there is momentum or betas.
        super().__init__([{**group, "params": [torch.zeros(1)]} for group in copies], defaults=copies[0])

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing to optimize."""


_NO_BASE = ("params", "param_names", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")
"""Beside the parameters and their names, the notes of a scheduler, which another one would take for given."""
_OF_GROUPS = ("min_lrs", "_last_lr")


def _base(group: Mapping[str, Any]) -> dict[str, Any]:
    base = {key: _copy(value) for key, value in group.items() if key not in _NO_BASE}
    # Some optimizers find their rate themselves, and have None: whoever binds a policy refuses them.
    rates = [group.get(key) for key in ("initial_lr", "lr")]
    return {**base, "lr": next((_copy(rate) for rate in rates if rate is not None), 0.1)}


def _copy(value: Any) -> Any:
    # A rate that is a tensor stays one of its type: torch computes in that too.
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | tuple | dict)
