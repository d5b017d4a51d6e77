"""Any torch LR scheduler as a function of time, which is counted from the start of the run.

torch's schedulers change their optimizer step by step, and only their deprecated `step(epoch)` jumps. Here the
scheduler runs on a shadow of the optimizer, one step for each unit of time (an epoch), whatever the policy's window:
its LR at time t is what the shadow holds after t steps.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from prunekit.errors import PrunekitError


class LearningRateSchedule:
    """A torch LR scheduler, asked for the values of the optimizer's groups at a time.

    Args:
        cls: an `LRScheduler` class, or one like `ReduceLROnPlateau` whose `step` takes `metrics`.
        args: its constructor's arguments, without the optimizer.
        groups: of the optimizers; they give the base values. Empty while a schedule is only being checked.
    """

    def __init__(self, cls: type, args: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
        self._cls, self._args = cls, dict(args)
        # With momentum, because some schedulers cycle it and refuse an optimizer that has none.
        self._base = _group_values(groups or SGD([torch.zeros(1)], lr=0.1, momentum=0.9).param_groups)
        self.takes_metrics = "metrics" in inspect.signature(cls.step).parameters  # type: ignore[attr-defined]
        self._restart()

    def follow(self, groups: Sequence[Mapping[str, Any]], former: Sequence[int | None]) -> None:
        """Other groups than before: `former` is the place that each of them had; a new one has its own base values."""
        new = _group_values(groups)
        self._base = [new[i] if place is None else self._base[place] for i, place in enumerate(former)]
        self._restart()

    def at(self, time: int) -> list[dict[str, Any]]:
        """The values of each group at a time: `lr`, and what else the scheduler cycles (momentum, betas)."""
        if time < self._time:
            self._restart()
        while self._time < time:
            self._step()
        return self._values()

    def after(self, metrics: Mapping[str, float] | None, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The values of each group after an epoch with these metrics, for a scheduler that looks at them.

        Raises:
            PrunekitError: the loop gave no metric for the scheduler's mode.
        """
        mode = getattr(self._scheduler, "mode", "min")
        if metrics is None or mode not in metrics:
            given = "none" if metrics is None else f"only {', '.join(map(repr, metrics))}"
            raise PrunekitError(f"{self._cls.__name__} needs on_epoch_end(metrics={{{mode!r}: …}}), got {given}")
        for shadow, group in zip(self._shadow.param_groups, groups, strict=True):
            # Such a scheduler multiplies the rate that is there, whoever has set it.
            shadow["lr"] = float(group["lr"])
        self._scheduler.step(float(metrics[mode]))
        return self._values()

    def state_dict(self) -> dict[str, Any]:
        """The base values and the time; of a scheduler that looks at metrics, all that it remembers."""
        state: dict[str, Any] = {"base": [dict(group) for group in self._base], "time": self._time}
        if self.takes_metrics:
            # `torch.load(weights_only=True)` would refuse the rest, which is the same in every instance.
            state["scheduler"] = {key: v for key, v in self._scheduler.state_dict().items() if _is_plain(v)}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._base = [dict(group) for group in state["base"]]
        self._restart()
        self.at(state["time"])
        if self.takes_metrics:
            self._scheduler.load_state_dict({**self._scheduler.state_dict(), **state["scheduler"]})

    def rehearse(self, time: int) -> None:
        """Walk through all times up to this one, to see whether the scheduler lasts. Nothing here changes.

        Raises:
            Exception: what the scheduler raised because its own plan is over.
        """
        scratch = LearningRateSchedule(self._cls, self._args, self._base)
        if not self.takes_metrics:
            scratch.at(time)

    def _restart(self) -> None:
        self._shadow = _Shadow(self._base)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self._scheduler = self._cls(self._shadow, **self._args)
        self._time = 0
        # What has ever differed from the base is the scheduler's to set, also when it comes back to the base. Its
        # constructor may have set something already.
        self._cycled = {"lr"} | self._changed()

    def _step(self) -> None:
        self._shadow.step()  # torch warns where the optimizer has not stepped first
        self._scheduler.step()
        self._time += 1
        self._cycled |= self._changed()

    def _changed(self) -> set[str]:
        pairs = zip(self._shadow.param_groups, self._base, strict=True)
        return {key for group, base in pairs for key in base if group[key] != base[key]}

    def _values(self) -> list[dict[str, Any]]:
        return [{key: group[key] for key in sorted(self._cycled)} for group in self._shadow.param_groups]


class _Shadow(Optimizer):
    """Parameter groups without the parameters."""

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        # torch's schedulers look into `defaults` to see whether there is momentum or betas.
        super().__init__([{**group, "params": [torch.zeros(1)]} for group in groups], defaults=dict(groups[0]))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing to optimize."""


def _group_values(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: float(value) if isinstance(value, Tensor) else value for key, value in group.items() if _is_base(key)}
        for group in groups
    ]


def _is_base(key: str) -> bool:
    # Beside the parameters and their names these are notes of a scheduler, which another one would take for given.
    return key not in ("params", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "param_names")


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | tuple | dict)
