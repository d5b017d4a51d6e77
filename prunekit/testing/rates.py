"""Test class for LR schedulers, to be subclassed: their rates, however a run comes to an epoch or a step.

class TestMyLR(LRSchedulerTests):
    scheduler = MyLR
    rates = [({"gamma": 0.5}, [16, 8, 4, 2, 1]), ({"gamma": 1.0}, [16, 16, 16, 16, 16])]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prunekit.plugins.loading import Plugins, load_plugins
from prunekit.plugins.registry import Registry
from prunekit.progress import Window
from prunekit.schedule.schedule import Schedule
from prunekit.schedule.specs import ComponentSpec, PolicySpec
from prunekit.scheduler import CompressionScheduler
from prunekit.testing.check import check_component
from prunekit.testing.runs import through_a_file
from prunekit.trace import Trace

BASE = 16.0
SILENT = Trace(level="error")


def optimizer_of(*rates: float) -> SGD:
    """An optimizer with a group, of one parameter and with momentum, for each base rate."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return SGD(groups, lr=0.1, momentum=0.9)


def group_rates(optimizer: Optimizer) -> Any:
    """The rate of each group; of one group alone the number itself."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return rates[0] if len(rates) == 1 else rates


def rates_by_epoch(
    scheduler: type | str,
    keys: Mapping[str, Any],
    epochs: int,
    *,
    bases: Sequence[float] = (BASE,),
    window: Window | None = None,
    relative: bool = False,
    stopped: int | None = None,
    metrics: Sequence[float] = (),
    look: Callable[[Optimizer], Any] = group_rates,
) -> list[Any]:
    """The learning rates during each epoch of a run under a schedule with one LR scheduler.

    Args:
        scheduler: the class, or the name that it is registered under.
        keys: of its section.
        epochs: the length of the run.
        bases: the rate of each group of the optimizer before the run.
        window: of the policy; the whole run by default.
        relative: whether the policy counts time from where its window opens.
        stopped: before this epoch the run is stopped, and goes on with another scheduler and another optimizer.
        metrics: what each epoch ends with, as the metric to minimise and as the one to maximise.
        look: what is written down of the optimizer.
    """
    schedule = _schedule(scheduler, keys, window or Window(0, epochs), relative)
    optimizer, run, seen = *_begin(schedule, bases), []
    for epoch in range(epochs):
        if epoch == stopped:
            optimizer, run = _resumed(schedule, optimizer, run)
        run.on_epoch_begin(epoch)
        seen.append(look(optimizer))
        run.on_epoch_end(epoch, metrics={"min": metrics[epoch], "max": metrics[epoch]} if metrics else None)
    return seen


def rates_by_step(
    scheduler: type | str,
    keys: Mapping[str, Any],
    steps: int,
    *,
    bases: Sequence[float] = (BASE,),
    window: Window | None = None,
    relative: bool = False,
    stopped: int | None = None,
    look: Callable[[Optimizer], Any] = group_rates,
) -> list[Any]:
    """The learning rates during each step of a run under a schedule with one LR scheduler.

    An epoch has three mini-batches, each of them a step. Arguments as of `rates_by_epoch`, in steps in place of epochs:
    a run that is stopped goes on within its epoch.
    """
    schedule = _schedule(scheduler, keys, window or Window(starting_step=0, ending_step=steps), relative)
    optimizer, run, seen = *_begin(schedule, bases), []
    for step in range(steps):
        epoch, minibatch = divmod(step, _MINIBATCHES)
        if step == stopped:
            optimizer, run = _resumed(schedule, optimizer, run)
        if minibatch == 0:
            run.on_epoch_begin(epoch)
        run.on_minibatch_begin(epoch, minibatch, _MINIBATCHES)
        seen.append(look(optimizer))
        optimizer.step()
        run.on_minibatch_end(epoch, minibatch, _MINIBATCHES)
        if minibatch == _MINIBATCHES - 1:
            run.on_epoch_end(epoch)
    return seen


_MINIBATCHES = 3


def _schedule(scheduler: type | str, keys: Mapping[str, Any], window: Window, relative: bool) -> Schedule:
    args = {"relative": True} if relative else {}
    components = [ComponentSpec("lr_scheduler", "lr", scheduler, keys)]
    return Schedule(components, [PolicySpec("lr_scheduler", "lr", window, args)])


def _begin(schedule: Schedule, bases: Sequence[float]) -> tuple[SGD, CompressionScheduler]:
    optimizer = optimizer_of(*bases)
    from_python = isinstance(schedule.components[0].class_, type)
    plugins = Plugins(Registry([]), ()) if from_python else _installed()
    return optimizer, CompressionScheduler(schedule, torch.nn.Linear(1, 1), optimizer, trace=SILENT, plugins=plugins)


def _resumed(schedule: Schedule, optimizer: SGD, run: CompressionScheduler) -> tuple[SGD, CompressionScheduler]:
    """The same in another process, where the rates were others."""
    saved = through_a_file((run.state_dict(), optimizer.state_dict()))
    optimizer, run = _begin(schedule, [99.0 for _ in optimizer.param_groups])
    optimizer.load_state_dict(saved[1])
    run.load_state_dict(saved[0])
    return optimizer, run


@cache
def _installed() -> Plugins:
    """All plugins, asked for once: that takes longer than a run."""
    return load_plugins()


class LRSchedulerTests:
    """What every LR scheduler keeps that is a function of the epoch and proportional to its base rate.

    Attributes:
        scheduler: the class.
        rates: keys, and the rate in each epoch from 0 on where the base rate is 16. At least two, of three or more
            epochs, each with keys that lead elsewhere.
    """

    scheduler: ClassVar[type]
    rates: ClassVar[Sequence[tuple[Mapping[str, Any], Sequence[float]]]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """A test for each line of `rates`."""
        if "keys" in metafunc.fixturenames:
            metafunc.parametrize(("keys", "rates"), self.rates, ids=[str(dict(keys)) for keys, _ in self.rates])

    def test_the_rates_of_each_epoch(self, keys: Mapping[str, Any], rates: Sequence[float]) -> None:
        assert rates_by_epoch(self.scheduler, keys, len(rates)) == pytest.approx(rates, rel=1e-9)

    def test_a_run_that_is_stopped_anywhere_goes_on_as_if_it_were_not(self, keys: Any, rates: Sequence[float]) -> None:
        straight = rates_by_epoch(self.scheduler, keys, len(rates))
        for stopped in range(1, len(rates)):
            assert rates_by_epoch(self.scheduler, keys, len(rates), stopped=stopped) == straight, stopped

    def test_a_late_policy_takes_the_rate_of_the_absolute_epoch(self, keys: Any, rates: Sequence[float]) -> None:
        epochs = len(rates)
        for window in (Window(epochs // 3, epochs - 1), Window(epochs // 2, epochs)):
            reached = [max((e + 1 for e in window.active if e < epoch), default=0) for epoch in range(epochs)]
            late = rates_by_epoch(self.scheduler, keys, epochs, window=window)
            assert late == pytest.approx([rates[e] if e else BASE for e in reached], rel=1e-9), window

    def test_a_relative_policy_takes_the_rates_of_a_run_that_begins_with_it(self, keys: Any, rates: Any) -> None:
        epochs, alone = len(rates), rates_by_epoch(self.scheduler, keys, len(rates))
        for late in (0, 1, epochs // 2):
            window, steps = Window(late, epochs), Window(starting_step=late, ending_step=epochs)
            expected = [*[BASE] * late, *alone[: epochs - late]]
            assert rates_by_epoch(self.scheduler, keys, epochs, window=window, relative=True) == expected, window
            assert rates_by_step(self.scheduler, keys, epochs, window=steps, relative=True) == expected, steps

    def test_the_rates_of_each_step_are_those_of_each_epoch(self, keys: Any, rates: Sequence[float]) -> None:
        straight = rates_by_epoch(self.scheduler, keys, len(rates))
        for stopped in (None, *range(1, len(rates))):
            assert rates_by_step(self.scheduler, keys, len(rates), stopped=stopped) == straight, stopped

    def test_each_group_of_the_optimizer_has_its_own_base(self, keys: Any, rates: Sequence[float]) -> None:
        seen = rates_by_epoch(self.scheduler, keys, len(rates), bases=(BASE, 2 * BASE))
        assert [pair[0] for pair in seen] == pytest.approx(rates, rel=1e-9)
        assert [pair[1] for pair in seen] == pytest.approx([2 * rate for rate in rates], rel=1e-9)

    def test_it_is_a_scheduler_of_torch_whose_state_fits_one_that_was_made_with_other_keys(self) -> None:
        (keys, rates), (other, _) = self.rates[:2]
        one, restored = self.make(keys), self.make(other)
        assert isinstance(one, LRScheduler)
        one.optimizer.step()
        one.step()
        restored.load_state_dict(one.state_dict())
        restored.optimizer.load_state_dict(one.optimizer.state_dict())
        restored.step()
        assert restored.get_last_lr() == pytest.approx([rates[2]], rel=1e-9)

    def test_it_keeps_the_laws(self) -> None:
        check_component(self.scheduler, **self.rates[0][0])

    def make(self, keys: Mapping[str, Any]) -> Any:
        """The scheduler itself, on an optimizer of its own."""
        return self.scheduler(optimizer_of(BASE), **keys)

    def stepped(self, epochs: int, **keys: Any) -> list[float]:
        """The rate in each epoch where the scheduler is stepped as a loop of torch's does it."""
        scheduler, seen = self.make(keys), []
        for _ in range(epochs):
            seen.append(scheduler.optimizer.param_groups[0]["lr"])
            scheduler.optimizer.step()
            scheduler.step()
        return seen
